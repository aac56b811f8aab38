"""``accumulate_statistics``: whatever way a layer is called, and whosever buffers it has."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import batchnorm
from batchnorm import accumulate_statistics
from batchnorm.errors import ArgumentError
from population.recalibrate_tools import expected, images, picture


@pytest.mark.parametrize("norm", [torch.nn.BatchNorm2d, batchnorm.BatchNorm2d])
def test_an_input_given_by_name_was_missed(norm):
    layer, x = norm(2, momentum=1.0), images(6)
    with accumulate_statistics(layer):
        for part in x.split(3):
            layer(input=part)
        assert int(layer.num_batches_tracked) == 0
    np.testing.assert_allclose(layer.running_var, expected([x])[1], rtol=1e-5)


def test_an_input_by_another_name():
    layer, x = torch.nn.BatchNorm2d(2, momentum=1.0), images(6)
    layer.forward = lambda x: torch.nn.BatchNorm2d.forward(layer, x)
    with accumulate_statistics(layer):
        for part in x.split(3):
            layer(x=part)
    np.testing.assert_allclose(layer.running_var, expected([x])[1], rtol=1e-5)


@pytest.mark.parametrize("kind", ["batch", "sync", "fused"])
def test_layers_that_share_buffers_lost_batches(kind):
    original = torch.nn.Sequential(torch.nn.BatchNorm2d(2, momentum=1.0))
    both, x = torch.nn.ModuleList([original, batchnorm.convert(original, kind)]), images(12)
    with accumulate_statistics(both):
        for number, part in enumerate(x.split(3)):
            both[number % 2](part)
    np.testing.assert_allclose(original[0].running_mean, expected([x])[0], rtol=1e-5)
    np.testing.assert_allclose(original[0].running_var, expected([x])[1], rtol=1e-5)
    assert int(original[0].num_batches_tracked) == 1


def test_ghost_batches_beside_batches_of_the_same_buffers():
    original = torch.nn.Sequential(batchnorm.BatchNorm2d(2, momentum=0.5))
    both, x = torch.nn.ModuleList([original, batchnorm.convert(original, "ghost", ghost_size=3)]), images(12)
    with accumulate_statistics(both):
        both[0](x[:6])
        both[1](x[6:])
    first, *parts = (expected([part])[0] for part in (x[:6], x[6:9], x[9:]))
    np.testing.assert_allclose(original[0].running_mean, first / 4 + np.mean(parts, axis=0) / 2, rtol=1e-5)
    assert int(original[0].num_batches_tracked) == 2


@pytest.mark.parametrize("norm", [torch.nn.BatchNorm2d, batchnorm.BatchNorm2d, batchnorm.DomainBatchNorm2d])
def test_buffers_replaced_meanwhile(norm):
    model, x = torch.nn.ModuleDict({"norm": norm(2)}), images(6)
    with pytest.raises(ArgumentError, match=r"statistics of norm \(\w+\) were replaced"), accumulate_statistics(model):  # noqa: PT012
        model["norm"](x)
        model.double()
        model["norm"](x.double())
    assert int(model["norm"].num_batches_tracked) == 0
    with accumulate_statistics(model):
        model["norm"](x.double())
    assert int(model["norm"].num_batches_tracked) == 1


def test_buffers_replaced_before_the_first_batch():
    layer, x = batchnorm.BatchNorm2d(2, momentum=1.0), images(6).double()
    with accumulate_statistics(layer):
        layer.double()
        layer(x)
    np.testing.assert_allclose(layer.running_var, expected([x])[1], rtol=1e-12)


def test_buffers_of_a_functional_call_move():
    layer, x = batchnorm.BatchNorm2d(2, momentum=1.0), images(6)
    own = {name: value.clone() for name, value in layer.state_dict().items()}
    with accumulate_statistics(layer):
        for part in x.split(3):
            torch.func.functional_call(layer, own, part)
    np.testing.assert_allclose(own["running_var"], expected([x])[1], rtol=1e-5)
    assert int(layer.num_batches_tracked) == 0


@pytest.mark.parametrize("norm", [torch.nn.BatchNorm2d, batchnorm.BatchNorm2d, batchnorm.GhostBatchNorm2d])
def test_many_calls_are_merged_meanwhile(norm, monkeypatch):
    from batchnorm.population import sinks

    layer, x = norm(2, momentum=1.0), images(27) + 30
    once = copy.deepcopy(layer)
    for each, unmerged in ((layer, 3), (once, 100)):
        monkeypatch.setattr(sinks, "_UNMERGED", unmerged)
        with accumulate_statistics(each):
            for part in x.split(2):
                each(part)
    torch.testing.assert_close(layer.running_mean, once.running_mean, rtol=1e-7, atol=0)
    torch.testing.assert_close(layer.running_var, once.running_var, rtol=1e-6, atol=0)


@pytest.mark.parametrize("norm", [torch.nn.BatchNorm2d, batchnorm.BatchNorm2d])
def test_the_average_of_all_batches_in_float64(norm):
    """The momentum 1 / 3 has to be as exact as the buffers."""
    layer, x = norm(2, momentum=None).double(), images(12).double()
    with accumulate_statistics(layer):
        layer(x[:2])
        layer(x[2:4])
    for part in (x[4:8], x[8:]):
        with accumulate_statistics(layer):
            layer(part)
    mean = np.mean([expected([part])[0] for part in x.split(4)], axis=0)
    np.testing.assert_allclose(layer.running_mean, mean, rtol=1e-14)


class Uploads(TorchDispatchMode):
    """Collects what is copied from the host to the device, which waits for it."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        if isinstance(output, torch.Tensor) and output.device.type == "meta":
            tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
            if any(each.device.type == "cpu" for each in tensors):
                self.found.append(func)
        return output


@pytest.mark.parametrize("norm", [torch.nn.BatchNorm2d, batchnorm.BatchNorm2d, batchnorm.GhostBatchNorm2d])
def test_numbers_were_copied_to_the_device(norm):
    layer, x = norm(2, device="meta"), torch.empty(6, 2, 5, 5, device="meta")
    with Uploads() as uploads:
        torch.ones(()).to("meta")
        assert uploads.found
        uploads.found.clear()
        with accumulate_statistics(layer):
            layer(x)
            if norm is batchnorm.BatchNorm2d:
                layer(x, mask=torch.empty(6, 5, 5, dtype=torch.bool, device="meta"))
            layer(x)
    assert uploads.found == []


class Net(torch.nn.Module):
    """Norms that are called one after the other in the same frame, which is compiled anew for each."""

    def __init__(self):
        super().__init__()
        self.norms = torch.nn.ModuleList(batchnorm.FusingBatchNorm2d(2, eps=10.0**-each) for each in (3, 4, 5))

    def forward(self, x):
        for norm in self.norms:
            x = self.one(norm, x)
        return x

    def one(self, norm, x):
        return torch.relu(norm(x).flatten(2).view(x.shape))


def test_a_norm_that_waits_came_into_the_next_compiled_frame(monkeypatch):
    """Beyond the limit of recompilations a frame runs as it is, and its output was traced on with (seen: LeViT)."""
    from batchnorm.nn import fusing

    torch._dynamo.reset()
    waiting, pending = [], fusing.Pending
    monkeypatch.setattr(fusing, "Pending", lambda call: waiting.append(call) or pending(call))
    model, x = Net(), images(6)
    plain, compiled = copy.deepcopy(model), torch.compile(model, backend="eager")
    with torch._dynamo.config.patch(recompile_limit=1), accumulate_statistics(model):
        for part in x.split(3):
            compiled(part)
    assert not waiting
    with accumulate_statistics(plain):
        for part in x.split(3):
            plain(part)
    assert waiting
    for norm, other in zip(model.norms, plain.norms, strict=True):
        torch.testing.assert_close(norm.running_var, other.running_var)


@pytest.mark.parametrize("norm", [torch.nn.BatchNorm2d, batchnorm.BatchNorm2d])
def test_a_copy_made_inside_can_be_accumulated(norm):
    """It was taken for its original, whose statistics are being accumulated."""
    layer, x = norm(2, momentum=1.0), images(6)
    with accumulate_statistics(layer):
        new = copy.deepcopy(layer)
        with accumulate_statistics(new):
            for part in x.split(3):
                new(part)
    np.testing.assert_allclose(new.running_var, expected([x])[1], rtol=1e-5)
    assert picture(new)[1] == picture(norm(2, momentum=1.0))[1]
