"""Gradients under ``lean`` are those without it: to the last bit with the compiled kernels."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

import batchnorm
from batchnorm.activation import ACTIVATIONS
from batchnorm.memory import lean
from batchnorm.ops import autograd, cpu, dispatch, eager, native

needs_kernels = pytest.mark.skipif(not cpu.available, reason=f"the compiled kernels: {cpu.reason}")

FORMATS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}

# What copies y before it keeps anything: there is nothing to replace.
COPIES = {("linear", "contiguous"), ("flatten", "channels-last")}

# What follows the norm, on y (4, 8, 6, 5) and a weight w (8, 8, 1, 1).
FOLLOWERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "conv": torch.conv2d,
    "linear": lambda y, w: nn.functional.linear(y.movedim(1, -1), w[:, :, 0, 0]),
    "matmul": lambda y, w: torch.bmm(w[:, :, 0, 0].expand(4, 8, 8), y.flatten(2)),
    "mul": lambda y, w: y * w[0],
    "exp": lambda y, w: (y * w[0] + y).exp(),
    "square": lambda y, w: y * y,
    "flatten": lambda y, w: y.flatten() * w[0, 0, 0, 0],
    "slice": lambda y, w: y[1:, 2:6, ::2] * w[0, 0],
    "transpose": lambda y, w: y.transpose(0, 1) * w[0, 0],
    "channels-last view": lambda y, w: y.permute(0, 2, 3, 1) * w[0, :, 0, 0],
    "expand": lambda y, w: y.unsqueeze(0).expand(2, -1, -1, -1, -1) * w[0],
    "in place": lambda y, w: torch.relu_(y + 0) * y,
    "max pool": lambda y, w: nn.functional.max_pool2d(y, 2) * w[0],
    "prelu": lambda y, w: nn.functional.prelu(y, w[0, :, 0, 0]),
    "twice": lambda y, w: torch.conv2d(y, w) + y.sin(),
}


def step(
    layer: nn.Module,
    follow: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    residual: Tensor | None,
    mask: Tensor | None,
    weight: Tensor,
    is_lean: bool,
    recipes: int = 1,
) -> tuple[Tensor, ...]:
    """Gradients of everything, and the running buffers; under ``lean`` one output is computed again."""
    layer = copy.deepcopy(layer)
    x, weight = (t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in (x, weight))
    inputs = [x, weight, *layer.parameters()]
    loss = torch.zeros(())
    with lean(report=True) if is_lean else nullcontext() as report:
        h = x * 1.5
        if residual is not None:
            residual = residual.detach().requires_grad_()
            inputs.append(residual)
            residual = residual * 0.5
            loss = residual.square().sum()  # keeps it, so there is a recipe
        y = layer(h, residual, mask)
        output = follow(y, weight)
        scale = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
        loss = loss + (output * scale).sum()
        del y, output
    if report is not None:
        assert report.recipes == recipes, report
    return *torch.autograd.grad(loss, inputs, allow_unused=True), *layer.buffers()


def equal(a: tuple[Tensor | None, ...], b: tuple[Tensor | None, ...]) -> bool:
    return all(
        one is other if one is None or other is None else torch.equal(one, other)
        for one, other in zip(a, b, strict=True)
    )


@needs_kernels
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_every_activation_to_the_last_bit(name: str, dtype: torch.dtype, memory_format: str) -> None:
    layer = batchnorm.BatchNormAct2d(8, activation=name)
    nn.init.normal_(layer.get_parameter("weight"))
    nn.init.normal_(layer.get_parameter("bias"))
    x, residual = (torch.randn(4, 8, 6, 5).to(dtype).contiguous(memory_format=FORMATS[memory_format]) for _ in range(2))
    mask = torch.rand(4, 6, 5) < 0.7
    weight = torch.randn(8, 8, 1, 1).to(dtype)
    for training in (True, False):
        layer.train(training)
        for added in (None, residual):
            for valid in (None, mask):
                arguments = (layer, FOLLOWERS["conv"], x, added, valid, weight)
                assert equal(step(*arguments, True), step(*arguments, False)), (training, added, valid)


@needs_kernels
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("follower", FOLLOWERS)
def test_whatever_follows(follower: str, memory_format: str) -> None:
    x = torch.randn(4, 8, 6, 5).contiguous(memory_format=FORMATS[memory_format])
    arguments = (batchnorm.BatchNormAct2d(8), FOLLOWERS[follower], x, None, None, torch.randn(8, 8, 1, 1))
    recipes = 0 if (follower, memory_format) in COPIES else 1
    assert equal(step(*arguments, True, recipes), step(*arguments, False))


@needs_kernels
@pytest.mark.parametrize("shape", [(4, 5, 6, 5), (2, 3, 70, 300), (300, 7, 1, 1), (2, 8, 3, 1)], ids=str)
def test_other_shapes(shape: tuple[int, ...]) -> None:
    """Those that are walked otherwise: few values, several slices of a channel, channels in no whole registers."""
    channels = shape[1]
    for memory_format in FORMATS.values():
        x = torch.randn(shape).contiguous(memory_format=memory_format)
        for x_ in (x, x.transpose(2, 3), torch.randn(2 * shape[0], *shape[1:])[::2]):
            arguments = (batchnorm.BatchNormAct2d(channels, activation="gelu"), FOLLOWERS["square"], x_)
            weight = torch.zeros(())
            assert equal(step(*arguments, None, None, weight, True), step(*arguments, None, None, weight, False))


@pytest.mark.parametrize("kernel", [native, eager], ids=["native", "eager"])
@pytest.mark.parametrize("name", ["identity", "relu", "gelu", "hardswish"])
def test_kernels_in_python_within_rounding(kernel: ModuleType, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autograd, "kernels", lambda *_: kernel)
    layer = batchnorm.BatchNormAct2d(8, activation=name)
    x, residual = (torch.randn(4, 8, 6, 5) for _ in range(2))
    for memory_format in FORMATS.values():
        x = x.contiguous(memory_format=memory_format)
        for training in (True, False):
            layer.train(training)
            arguments = (layer, FOLLOWERS["twice"], x, residual, None, torch.randn(8, 8, 1, 1))
            torch.testing.assert_close(step(*arguments, True), step(*arguments, False), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("compiled", [pytest.param(True, marks=needs_kernels), False])
def test_autocast_of_the_backward_pass_changes_nothing(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), batchnorm.BatchNormAct2d(8, activation="gelu"), nn.Conv2d(8, 4, 3))
    x = torch.randn(2, 3, 8, 8)
    if not compiled:
        monkeypatch.setattr(dispatch, "_compiled", None)

    def gradients(is_lean: bool, forward: bool, backward: bool) -> list[Tensor]:
        model.zero_grad(set_to_none=True)
        model.eval()
        with lean() if is_lean else nullcontext(), torch.autocast("cpu", torch.bfloat16, enabled=forward):
            loss = model(x).float().square().sum()
        with torch.autocast("cpu", torch.bfloat16, enabled=backward):
            loss.backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    for forward in (True, False):
        for backward in (True, False):
            assert all(
                torch.equal(*pair)
                for pair in zip(gradients(True, forward, backward), gradients(False, forward, backward), strict=True)
            )


@needs_kernels
def test_higher_derivatives_and_several_backward_passes() -> None:
    layer = batchnorm.BatchNormAct1d(3, activation="tanh").double()
    weight = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)

    def derivatives(is_lean: bool) -> tuple[Tensor, ...]:
        with lean() if is_lean else nullcontext():
            loss = (layer(x.sin()) @ weight).exp().sum()
        first = torch.autograd.grad(loss, (x, weight), create_graph=True)
        with lean() if is_lean else nullcontext():
            again = torch.autograd.grad(loss, (x, weight), create_graph=True)
        second = torch.autograd.grad(sum(g.sin().sum() for g in (*first, *again)), (x, weight), retain_graph=True)
        third = torch.autograd.grad(loss, (x, weight), retain_graph=True)
        batched = torch.autograd.grad(loss, x, torch.ones(2, dtype=torch.float64), is_grads_batched=True)
        return *first, *again, *second, *third, *batched

    assert equal(derivatives(True), derivatives(False))


@needs_kernels
def test_several_forward_passes_before_a_backward_pass() -> None:
    model = nn.Sequential(
        batchnorm.ConvBlock(3, 8, 3, activation="silu"), batchnorm.ResidualBlock(8, bottleneck=4), nn.Flatten()
    )
    batches = [torch.randn(2, 3, 6, 6) for _ in range(3)]

    def gradients(is_lean: bool) -> tuple[Tensor | None, ...]:
        mine = copy.deepcopy(model)
        with lean() if is_lean else nullcontext():
            losses = [mine(batch).square().sum() for batch in batches]
        losses[1].backward()
        (losses[0] * losses[2]).backward()
        return *(p.grad for p in mine.parameters()), *mine.buffers()

    assert equal(gradients(True), gradients(False))


@needs_kernels
def test_momentum_as_a_tensor_goes_the_recorded_road_and_is_lean_too() -> None:
    x, weight = torch.randn(4, 8, 6, 5), torch.randn(8, 8, 1, 1)
    layer = batchnorm.BatchNormAct2d(8)
    layer.num_batches_tracked = layer.num_batches_tracked.float()  # as averaged state_dicts leave it
    arguments = (layer, FOLLOWERS["conv"], x, None, None, weight)
    assert equal(step(*arguments, True), step(*arguments, False))
