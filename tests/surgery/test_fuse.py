"""``fuse``: what is found, what is refused and why, and that nothing else changes."""

from __future__ import annotations

import copy
import io
import pickle
import random
import re
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import batchnorm
from batchnorm.errors import DifferentResultError, SurgeryError
from batchnorm.nn import _norm_call
from batchnorm.surgery import fuse
from surgery.fuse_tools import images, outcomes


def randomize(model: nn.Module) -> nn.Module:
    """Parameters and statistics at which a mistake shows: fresh ones are 0 and 1."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point() and tensor.dim() == 1:
                tensor.add_(torch.rand(tensor.shape, generator=generator) * (1 if "var" in name else 0.5))
    return model


def step(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, gradients and buffers of one training step."""
    model.zero_grad()
    y = model(x)
    y.sin().sum().backward()
    return [y.detach(), *(p.grad.clone() for p in model.parameters()), *(b.clone() for b in model.buffers())]


class Basic(nn.Module):
    """torchvision's BasicBlock, with a shortcut that is a norm too."""

    def __init__(self, inplace: bool = True) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.downsample = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4))
        self.relu = nn.ReLU(inplace=inplace)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.downsample(x)
        return self.relu(out)


class Functional(nn.Module):
    """Activations and sums as functions, methods and operators."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norms = nn.Conv2d(3, 4, 1), nn.ModuleList(nn.BatchNorm2d(4) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        a, b, c, d, e, f = self.norms
        x = F.leaky_relu(a(x), 0.2, inplace=True)
        x = b(x).sigmoid() + torch.tanh(c(x))
        x = F.gelu(x + d(x), approximate="tanh")
        return 2 * (F.hardtanh(e(x), -2, 2) + f(x))


def test_a_block_as_torchvision_writes_it():
    result = fuse(Basic(), images())
    assert outcomes(result) == {
        "bn1": ("fused", "relu"),
        "bn2": ("fused", "add + relu"),
        "downsample.1": ("replaced", "it is the other side of the sum that bn2 (BatchNorm2d) fuses with"),
    }
    assert result.max_error < 1e-3
    assert result.errors.by_dtype["float64"] < 1e-12


def test_functions_methods_and_operators():
    result = fuse(Functional(), images())
    assert outcomes(result) == {
        "norms.0": ("fused", "leaky_relu(negative_slope=0.2)"),
        "norms.1": ("fused", "sigmoid"),
        "norms.2": ("fused", "tanh"),
        "norms.3": ("fused", "add + gelu_tanh"),
        "norms.4": ("fused", "hardtanh(min_val=-2, max_val=2)"),
        "norms.5": ("fused", "add"),
    }


def test_the_table():
    result = fuse(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.SiLU(), nn.SyncBatchNorm(4).eval()), images())
    first, second, last = str(result).splitlines()
    assert first == "1  BatchNorm2d    fused  silu"
    assert second == "3  SyncBatchNorm  kept   SyncBatchNorm is a class of its own and may compute something else"
    assert last.startswith("1 fused, 1 kept; largest relative difference on the example: ")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", [Basic, Functional])
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_training_and_evaluation_are_as_they_were(kind, format, training):
    given = randomize(kind()).train(training)
    fused = fuse(copy.deepcopy(given), images()).model
    x = images(8).to(memory_format=format)
    for _ in range(2):  # the second time the buffers have moved
        for ours, theirs in zip(step(fused, x), step(given, x), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)
    given.train(not training), fused.train(not training)
    torch.testing.assert_close(fused(x), given(x), rtol=1e-4, atol=1e-3)


def test_parameters_buffers_and_keys_are_the_same_and_the_model_stays_usable():
    given = Basic()
    optimizer = torch.optim.SGD(given.parameters(), lr=0.1)
    classes = [type(module) for module in given.modules()]
    result = fuse(given, images())
    fused = result.model
    assert [type(module) for module in given.modules()] == classes
    assert list(fused.state_dict()) == list(given.state_dict())
    for (name, ours), (_, theirs) in zip(fused.named_parameters(), given.named_parameters(), strict=True):
        assert ours is theirs, name
    for (name, ours), (_, theirs) in zip(fused.named_buffers(), given.named_buffers(), strict=True):
        assert ours is theirs, name
    assert isinstance(fused, Basic)
    assert isinstance(fused.bn2, nn.BatchNorm2d)
    fused(images()).sum().backward()
    before = given.conv1.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(fused.conv1.weight, before)
    assert int(given.bn1.num_batches_tracked) == 1
    given(images())
    assert int(fused.bn1.num_batches_tracked) == 2


def test_fused_twice_is_fused_once():
    once = fuse(Basic(), images())
    twice = fuse(once.model, images())
    assert [each.action for each in twice.changed] == [each.action for each in once.changed]
    assert [type(m) for m in twice.model.modules()] == [type(m) for m in once.model.modules()]


def test_nothing_moves_while_it_is_proved():
    given = Basic()
    given.bn1.weight.grad = torch.ones(4)
    state, rng = copy.deepcopy(given.state_dict()), torch.get_rng_state()
    fuse(given, images())
    assert torch.equal(torch.get_rng_state(), rng)
    for name, value in given.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert torch.equal(given.bn1.weight.grad, torch.ones(4))


def test_a_norm_that_was_computed_with_something_else_is_not_fused(monkeypatch):
    """What was seen in a run decides, not what the graph says."""
    run = _norm_call.NormCall.run
    leaky = batchnorm.Activation("leaky_relu", negative_slope=0.001)
    monkeypatch.setattr(_norm_call.NormCall, "run", lambda self, residual, _: run(self, residual, leaky))
    result = fuse(Basic(), images())
    assert {action for action, _ in outcomes(result).values()} == {"replaced"}


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("residual", r"on the example in float64, .* differs by"),
        ("gradient", r"\(gradient\) of the rewritten model differs"),
        ("buffers", r"running_var \(buffer\) of the rewritten model differs"),
        ("dtype", r"the rewritten model gives \(torch.float64,\) on the example, and the model \(torch.float32,\)"),
        ("raises", "the rewritten model raises on the example inputs: ValueError: no"),
    ],
)
def test_what_would_compute_something_else_is_not_fused_and_nothing_is_lost(broken, message, monkeypatch):
    run = _norm_call.NormCall.run
    calls = []

    def wrong(self, residual, activation):
        calls.append(activation)
        if broken == "raises" and len(calls) > 2:  # two norms wait; once they are watched
            raise ValueError("no")
        if broken == "residual" and residual is not None:
            residual = residual * 1.0001
        output = run(self, residual, activation)
        if broken == "buffers":
            self.layer.running_var.mul_(1.0001)
        if broken == "gradient":
            output = output * 1.0001 - (output * 0.0001).detach()
        return output.double() if broken == "dtype" and residual is not None else output

    given = Basic()
    state = copy.deepcopy(given.state_dict())
    with monkeypatch.context() as patch:
        patch.setattr(_norm_call.NormCall, "run", wrong)
        result = fuse(given, images())
    whys = [why for action, why in outcomes(result).values() if action == "replaced" and "computed with" in why]
    assert whys
    assert all(re.search(message, why) for why in whys)
    for name, value in given.state_dict().items():
        assert torch.equal(value, state[name]), name
    torch.testing.assert_close(result.model(images()), copy.deepcopy(given)(images()))
    assert {action for action, _ in outcomes(fuse(given, images())).values()} == {"fused", "replaced"}


class Draws:
    turns = 0

    def __call__(self) -> float:
        Draws.turns += 1
        return 1.0 + Draws.turns  # something else every time


def test_a_model_that_is_never_the_same_is_refused():
    given = Basic()
    given.drawn = Draws()
    given.register_forward_hook(lambda module, inputs, output: output * module.drawn())
    state = copy.deepcopy(given.state_dict())
    with pytest.raises(DifferentResultError, match="of the rewritten model differs"):
        fuse(given, images())
    assert all(torch.equal(value, state[name]) for name, value in given.state_dict().items())


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_around_a_norm(reentrant):
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.block = nn.Conv2d(3, 3, 1), Basic(inplace=False)

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.block, self.stem(x), use_reentrant=reentrant)

    found = outcomes(fuse(Checkpointed(), images()))
    assert {action for action, _ in found.values()} <= {"fused", "replaced"}


def test_the_example_and_the_parameters_stay_as_they_are():
    class Momentum(nn.Module):
        """Moves its own parameters and its input, and draws from Python and NumPy."""

        def __init__(self) -> None:
            super().__init__()
            self.query, self.key = (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU()) for _ in range(2))

        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            x = batch.pop("x")
            x.sub_(1)
            for key, query in zip(self.key.parameters(), self.query.parameters(), strict=True):
                key.data = key.data * 0.9 + query.data * 0.1
            if int(x.sum() * 0) == 0:  # depends on data
                x = x * random.random() + np.random.rand()
            return self.query(x) - self.key(x).detach()

    given, batch = Momentum(), {"x": torch.randn(5, 3)}
    state, x = copy.deepcopy(given.state_dict()), batch["x"].clone()
    states = random.getstate(), np.random.get_state()[1].copy()
    fuse(given, (batch,))
    assert torch.equal(batch["x"], x)
    assert all(torch.equal(value, state[name]) for name, value in given.state_dict().items())
    assert random.getstate() == states[0]
    assert np.array_equal(np.random.get_state()[1], states[1])


@dataclass
class Output:
    value: Tensor
    other: object = None


def test_outputs_of_any_class_are_compared(monkeypatch):
    class Plain:
        pass

    class Packed(Basic):
        def forward(self, x: Tensor) -> Output:
            inner = Plain()
            inner.value = super().forward(x)
            return Output(torch.zeros(1), inner)

    assert fuse(Packed(), images()).max_error > 0

    class Nothing(Basic):
        def forward(self, x: Tensor) -> str:
            return str(super().forward(x).shape)

    with pytest.raises(SurgeryError, match="holds no tensor, so there is nothing to compare"):
        fuse(Nothing(), images())


def test_what_is_no_module_is_refused():
    with pytest.raises(SurgeryError, match=r"a function is no torch\.nn\.Module"):
        fuse(lambda x: x, images())


def test_an_interrupt_leaves_everything_as_it_was():
    class Stops(Basic):
        runs = 0

        def forward(self, x: Tensor) -> Tensor:
            Stops.runs += 1
            if Stops.runs == 3:
                raise KeyboardInterrupt
            return super().forward(x)

    given = Stops()
    state, rng = copy.deepcopy(given.state_dict()), torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        fuse(given, images())
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(value, state[name]) for name, value in given.state_dict().items())
    assert type(given.bn1) is nn.BatchNorm2d
    assert _norm_call._watching is None


def test_frozen_layers_stay_frozen():
    given = randomize(Basic())
    given.bn1.eval()
    fused = fuse(given, images()).model
    mean = given.bn1.running_mean.clone()
    fused(images())
    assert torch.equal(given.bn1.running_mean, mean)
    assert int(given.bn2.num_batches_tracked) == 1


# --- what a user does with the result ------------------------------------------------------------------------


def test_half_precision_under_autocast():
    given = randomize(Basic()).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = fuse(given, images())
        y = result.model(images())
        torch.testing.assert_close(y, copy.deepcopy(given)(images()), rtol=0.05, atol=0.05)
    assert y.dtype is torch.bfloat16
    assert outcomes(result)["bn2"] == ("fused", "add + relu")


def test_it_is_saved_copied_and_loaded():
    given = randomize(Basic()).eval()
    fused = fuse(given, images()).model
    wanted = given(images())
    file = io.BytesIO()
    torch.save(fused, file)
    file.seek(0)
    for other in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused)), torch.load(file, weights_only=False)):
        torch.testing.assert_close(other(images()), wanted)
    fresh = Basic().eval()
    fresh.load_state_dict(fused.state_dict())
    torch.testing.assert_close(fresh(images()), wanted)


@pytest.mark.parametrize("training", [True, False])
def test_torch_compile_and_export(training):
    given = randomize(Basic(inplace=False)).train(training)
    fused = fuse(copy.deepcopy(given), images()).model
    torch._dynamo.reset()
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(step(compiled, images()), step(given, images()), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)
    if not training:
        torch.testing.assert_close(torch.export.export(fused, (images(),)).module()(images()), given(images()))


def test_inputs_of_other_sizes_and_kinds():
    fused = fuse(Basic(), {"x": images()}).model
    assert fused(images(2)).shape == (2, 4, 6, 6)
    assert fused(torch.randn(1, 3, 9, 7)).shape == (1, 4, 9, 7)
    assert fuse(Basic(), (images(),)).max_error < 1e-3


def test_one_and_three_dimensions():
    flat = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ELU(0.5))
    assert outcomes(fuse(flat, torch.randn(5, 3))) == {"1": ("fused", "elu(alpha=0.5)")}
    deep = nn.Sequential(
        nn.Conv3d(1, 2, 2), nn.BatchNorm3d(2, affine=False, momentum=None), nn.Hardswish(), nn.Flatten()
    )
    assert outcomes(fuse(deep, torch.randn(3, 1, 4, 4, 4))) == {"1": ("fused", "hardswish")}
    untracked = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Flatten(), nn.Tanh())
    assert outcomes(fuse(untracked.eval(), torch.randn(5, 3))) == {"1": ("fused", "tanh")}


def test_random_numbers_are_the_same_in_both():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(8, 2, 1))
    assert fuse(model, images()).max_error < 1e-3
