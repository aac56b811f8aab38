"""A model comes back as it was, whatever was done to it."""

from __future__ import annotations

import random
from array import array
from collections import Counter, OrderedDict, deque

import numpy as np
import pytest
import torch
from torch import nn

import batchnorm
from batchnorm.doctor.keeping import Keeping, same_bits
from doctor.pictures import picture


class Ordered(OrderedDict[str, int]):
    """Counts what is written, as mappings that check their entries do."""

    written = 0

    def __setitem__(self, key: str, value: int) -> None:
        self.written += 1
        super().__setitem__(key, value)


class Named(list[int]):
    """A list with an attribute."""

    name = ""


class Everything(nn.Module):
    """Has an attribute of each kind that is remembered."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.norm.running_mean[0] = torch.nan
        self.short = nn.Parameter(torch.ones(2, dtype=torch.float16))
        self.turned = nn.Parameter(torch.ones(2, dtype=torch.complex64))
        self.register_buffer("flags", torch.tensor([True, False]))
        self.register_buffer("negative_zero", torch.tensor(-0.0))
        self.center = torch.zeros(3)
        self.queue = [torch.zeros(2)]
        self.history = {"losses": [1.0], "shapes": {(1, 2)}}
        self.recent = deque([1, 2], maxlen=2)
        self.array = np.zeros(3)
        self.draw, self.numpy_draw, self.python_draw = torch.Generator(), np.random.default_rng(0), random.Random(0)
        self.old_draw = np.random.RandomState(0)
        self.counts, self.bytes, self.numbers = Counter(a=1), bytearray(2), array("d", [1.0])
        self.ordered, self.named = Ordered(a=1), Named([1])
        self.named.name, self.ordered.notes = "before", ["one"]

    def disturb(self) -> None:
        with torch.no_grad():
            self.norm.running_mean += 1
            self.short.mul_(2)
            self.turned.mul_(1j)
            self.negative_zero.abs_()
        self.flags.logical_not_()
        self.center += 1
        self.queue[0] += 1
        self.queue.append(torch.ones(1))
        self.history["losses"].append(2.0)
        self.history["shapes"].add((3,))
        self.history["more"] = 1
        self.recent.append(3)
        self.array += 1
        torch.rand(1, generator=self.draw)
        self.numpy_draw.random()
        self.python_draw.random()
        self.old_draw.rand()
        self.counts["b"] += 2
        self.bytes[0], self.numbers[0] = 7, 7.0
        self.bytes.append(1)
        self.ordered["b"] = 2
        self.ordered.move_to_end("a")
        self.ordered.notes.append("two")
        self.named.append(2)
        self.named.name = "after"

    def held(self) -> list[object]:
        of_containers = [dict(self.counts), bytes(self.bytes), list(self.numbers), list(self.named), self.named.name]
        return [*of_containers, list(OrderedDict.items(self.ordered)), list(self.ordered.notes)]


def test_all_kinds_of_attributes() -> None:
    model = Everything()
    before, keeping = picture(model), Keeping(model)
    drawn = [model.python_draw.getstate(), str(model.old_draw.get_state()), list(model.recent)]
    held, written = model.held(), model.ordered.written
    model.disturb()
    assert picture(model) != before
    assert all(one != other for one, other in zip(model.held(), held, strict=True))
    keeping.restore()
    assert model.held() == held
    assert model.ordered.written == written
    assert picture(model) == before
    assert drawn == [model.python_draw.getstate(), str(model.old_draw.get_state()), list(model.recent)]
    assert model.recent.maxlen == 2
    keeping.restore()
    assert picture(model) == before


def test_what_changes_of_a_module_and_its_tensors() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.ReLU())
    model[0].weight.grad = torch.ones(3, 2)
    model[0].bias.register_hook(lambda gradient: gradient)
    model[0].weight.register_post_accumulate_grad_hook(lambda _: None)
    model[1].bias.requires_grad_(False)
    before, keeping, gradient = picture(model), Keeping(model), model[0].weight.grad
    gradient.mul_(3)
    model[0].weight.data = torch.zeros(3, 2)  # other memory, as FSDP and momentum encoders may do
    model[0].bias.data = torch.zeros(5, dtype=torch.float64)
    model[0].weight.grad = None
    model[1].bias.requires_grad_()
    model[1].bias.grad = torch.ones(3)
    model[1].weight.register_hook(lambda gradient: 2 * gradient)
    model[1].weight.register_post_accumulate_grad_hook(lambda _: None)
    model[2].register_forward_hook(lambda *_: None)
    batchnorm.freeze(model)
    model.eval()
    model[1]._buffers["running_mean"] = torch.ones(3)
    del model[2]
    model.extra = nn.Linear(1, 1)
    assert picture(model) != before
    keeping.restore()
    assert picture(model) == before


def test_gradients_and_what_waits_for_them_are_taken_away_and_come_back() -> None:
    model, calls = nn.Linear(2, 2), []
    model.weight.grad = torch.ones(2, 2)
    model.weight.register_hook(lambda gradient: calls.append("hook"))
    model.weight.register_post_accumulate_grad_hook(lambda _: calls.append("step"))
    before, keeping = picture(model), Keeping(model)
    keeping.without_gradients()
    model(torch.ones(1, 2)).sum().backward()
    assert calls == []
    keeping.restore()
    assert picture(model) == before
    model(torch.ones(1, 2)).sum().backward()
    assert calls == ["hook", "step"]


def test_a_graph_that_the_user_holds_does_not_hear_of_it() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).eval()
    loss = model(torch.randn(4, 3)).sum()  # its graph holds the running statistics
    keeping = Keeping(model)
    model.train()(torch.randn(4, 3))
    keeping.restore()
    loss.backward()


def test_a_norm_that_waits_moves_its_statistics_before() -> None:
    norm = batchnorm.FusingBatchNorm1d(2)
    x = torch.randn(4, 2)
    waiting = norm(x)
    keeping = Keeping(norm)
    norm.eval()
    torch.relu(waiting)
    keeping.restore()
    assert int(norm.num_batches_tracked) == 1
    torch.testing.assert_close(norm.running_mean, 0.1 * x.mean(0))


def test_the_optimizer() -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=1.0)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    average = optimizer.state[model.weight]["exp_avg"]
    keeping, before, groups = Keeping(model, optimizer), average.clone(), len(optimizer.param_groups)
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    optimizer.param_groups[0]["lr"] = 2.0
    optimizer.param_groups[0]["params"].pop()
    optimizer.step()
    keeping.restore()
    assert len(optimizer.param_groups) == groups
    assert optimizer.param_groups[0]["lr"] == 1.0
    assert optimizer.param_groups[0]["params"] == [model.weight, model.bias]
    assert optimizer.state[model.weight]["exp_avg"] is average
    assert torch.equal(average, before)


def test_tensors_without_plain_memory() -> None:
    model = nn.Embedding(4, 2, sparse=True)
    model(torch.tensor([1])).sum().backward()
    model.register_buffer("table", torch.eye(2).to_sparse())
    model.shape = nn.Parameter(torch.ones(2, device="meta"))
    table, keeping = model.table, Keeping(model)
    before = model.weight.grad.to_dense().clone()
    model.weight.grad.mul_(2)
    model.table.mul_(3)
    keeping.restore()
    assert torch.equal(model.weight.grad.to_dense(), before)
    assert model.table is table
    assert torch.equal(table.to_dense(), torch.eye(2))


def test_lazy_modules_can_be_kept() -> None:
    model = nn.Sequential(nn.LazyLinear(3), nn.BatchNorm1d(3))
    keeping = Keeping(model)
    model[1].running_mean += 1
    keeping.restore()
    assert not model[1].running_mean.any()


def test_tensors_of_inference_mode_stay_so() -> None:
    with torch.inference_mode():
        model = nn.BatchNorm1d(2)
    keeping = Keeping(model)
    with torch.inference_mode():
        model(torch.randn(3, 2))
    assert model.running_mean.any()
    keeping.restore()
    assert not model.running_mean.any()
    assert model.running_mean.is_inference()


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (torch.tensor([torch.nan]), torch.tensor([torch.nan]), True),
        (torch.tensor([0.0]), torch.tensor([-0.0]), False),
        (torch.tensor([0.0]), torch.tensor([torch.nan]), False),
        (torch.ones(2, 3).T, torch.ones(3, 2), True),
        (torch.ones(2), torch.ones(2, dtype=torch.float64), False),
        (torch.ones(2), torch.ones(3), False),
        (torch.tensor(1), torch.tensor(1), True),
        (torch.tensor([1.0, 2.0], dtype=torch.complex128), torch.tensor([1.0, 2.0], dtype=torch.complex128), True),
        (torch.tensor([1j], dtype=torch.complex128), torch.tensor([2j], dtype=torch.complex128), False),
        (torch.tensor([1j, torch.nan]), torch.tensor([1j, torch.nan]), True),
        (torch.tensor([True]), torch.tensor([False]), False),
        (torch.zeros(2, 3, 4, 5), torch.zeros(2, 3, 4, 5).contiguous(memory_format=torch.channels_last), True),
    ],
)
def test_same_bits(one: torch.Tensor, other: torch.Tensor, same: bool) -> None:
    assert same_bits(one, other) is same
