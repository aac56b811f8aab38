"""The operators under ``torch.ops.batchnorm``: schema, fake, autograd registration, aliasing, strides."""

from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

import batchnorm
from batchnorm.ops import eager
from batchnorm.ops.schema import SCHEMAS
from contract import FORMATS

OPS = torch.ops.batchnorm


def layer(
    dtype: torch.dtype = torch.float32, format: str = "contiguous", mask: bool = False, residual: bool = True
) -> dict[str, Any]:
    x = FORMATS[format](torch.randn(4, 3, 2, 5).to(dtype))
    return {
        "input": x,
        "mean": torch.randn(3),
        "var": torch.rand(3) + 0.5,
        "weight": torch.randn(3),
        "bias": torch.randn(3),
        "residual": torch.randn_like(x) if residual else None,
        "mask": torch.rand(4, 2, 5) < 0.7 if mask else None,
    }


def activation(name: str) -> tuple[float, str, list[float]]:
    described = batchnorm.Activation(name)
    return 1e-5, described.name, list(described.parameters)


def cases() -> Iterator[Any]:
    """Every dtype, format, mask and name; slow but for those in which no two things are unusual at once."""
    for dtype, format, mask, name in product(
        (torch.float32, torch.bfloat16), FORMATS, (False, True), ("identity", "relu", "leaky_relu", "silu")
    ):
        unusual = (dtype != torch.float32) + (format != "contiguous") + mask + (name != "relu")
        marks = [pytest.mark.slow] if unusual > 1 else []
        yield pytest.param(dtype, format, mask, name, marks=marks, id=f"{name}-{mask}-{format}-{dtype}")


vary = pytest.mark.parametrize(("dtype", "format", "mask", "name"), list(cases()))


def run_forward(values: dict[str, Any], name: str, keep_bits: bool) -> tuple[Tensor, ...]:
    chosen = [values[key] for key in ("input", "weight", "bias", "residual", "mask")]
    return OPS.forward(*chosen, *activation(name), keep_bits)


@vary
def test_forward(dtype: torch.dtype, format: str, mask: bool, name: str) -> None:
    values = layer(dtype, format, mask)
    for key in ("input", "weight", "bias", "residual"):
        values[key].requires_grad_()
    keep_bits = batchnorm.Activation(name).needs_bit
    chosen = [values[key] for key in ("input", "weight", "bias", "residual", "mask")]
    torch.library.opcheck(OPS.forward.default, (*chosen, *activation(name), keep_bits))


@vary
def test_backward(dtype: torch.dtype, format: str, mask: bool, name: str) -> None:
    values = layer(dtype, format, mask)
    bits = run_forward(values, name, True)[4] if batchnorm.Activation(name).needs_bit else None
    dy = torch.randn_like(values["input"])
    for count in (None, torch.tensor(40)):
        for wanted in (
            [True] * 4,
            [False, True, True, False],
            [True, False, False, False],
            [False, False, False, True],
        ):
            torch.library.opcheck(OPS.backward.default, (dy, *values.values(), bits, count, *activation(name), wanted))


@vary
def test_primitives(dtype: torch.dtype, format: str, mask: bool, name: str) -> None:
    values = layer(dtype, format, mask)
    dy = torch.randn_like(values["input"])
    torch.library.opcheck(OPS.moments.default, (values["input"], values["mask"]))
    torch.library.opcheck(OPS.normalize.default, (*values.values(), *activation(name)))
    torch.library.opcheck(OPS.grad_sums.default, (dy, *values.values(), None, *activation(name)))
    sums = OPS.grad_sums(dy, *values.values(), None, *activation(name))
    count = torch.tensor(40)
    torch.library.opcheck(OPS.grad_input.default, (dy, *values.values(), None, count, *sums, *activation(name), True))


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_double_moments(dtype: torch.dtype, mask: bool) -> None:
    values = layer(dtype, mask=mask)
    torch.library.opcheck(OPS.double_moments.default, (values["input"], values["mask"]))


def test_double_moments_know_more_than_float32_holds() -> None:
    """Rounded, the mean of these is off by a part of their spread."""
    x = 1e4 + 1e-2 * torch.randn(64, 3, 5)
    exact = torch.var_mean(x.double(), dim=(0, 2), correction=0)
    for found in (OPS.double_moments(x, None), eager.double_moments(x)):
        torch.testing.assert_close(found[1], exact[1], rtol=1e-9, atol=0)
        torch.testing.assert_close(found[2], exact[0], rtol=1e-3, atol=0)


@vary
def test_train(dtype: torch.dtype, format: str, mask: bool, name: str) -> None:
    values = layer(dtype, format, mask)
    chosen = [values[key] for key in ("input", "weight", "bias", "residual", "mask")]
    keep_bits = batchnorm.Activation(name).needs_bit
    buffers = (torch.zeros(3), torch.ones(3), torch.tensor(4))
    for tracked, momentum in ((buffers, 0.1), (buffers, None), ((*buffers[:2], None), 0.1), ((None,) * 3, 0.1)):
        arguments = (*chosen, *tracked, momentum, True, *activation(name), keep_bits)
        torch.library.opcheck(OPS.train.default, arguments)
    torch.testing.assert_close(OPS.train(*arguments), run_forward(values, name, keep_bits))


@pytest.mark.parametrize("shape", [(5, 3), (1, 3, 9), (7, 0, 2), (0, 3, 2)], ids=str)
def test_bits_are_whole_bytes_a_channel(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    arguments = (x, None, None, torch.randn(shape), None, *activation("relu"), True)
    torch.library.opcheck(OPS.forward.default, arguments)
    values = x.numel() // max(shape[1], 1)
    assert OPS.forward(*arguments)[4].numel() == shape[1] * -(-values // 8)


@pytest.mark.parametrize("mask", [False, True])
def test_train_moves_the_buffers_as_update_running_does(mask: bool) -> None:
    values = layer(mask=mask)
    chosen = [values[key] for key in ("input", "weight", "bias", "residual", "mask")]
    _, count, mean, var, _ = run_forward(values, "relu", True)
    for momentum in (0.1, None):
        found, wanted = ((torch.zeros(3), torch.ones(3), torch.tensor(4)) for _ in range(2))
        OPS.train(*chosen, *found, momentum, True, *activation("relu"), True)
        OPS.update_running(*wanted, count, mean, var, 0.2 if momentum is None else momentum, True)
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("tracked", [True, False])
@pytest.mark.parametrize("momentum", [0.1, torch.tensor(0.1)], ids=["float", "tensor"])
def test_update_running(momentum: float | Tensor, tracked: bool) -> None:
    overload = OPS.update_running.tensor if isinstance(momentum, Tensor) else OPS.update_running.default
    batch = (torch.tensor(8), torch.randn(3), torch.rand(3))
    arguments = (torch.zeros(3), torch.ones(3), torch.tensor(0) if tracked else None, *batch, momentum, True)
    torch.library.opcheck(overload, arguments)


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("name", list(batchnorm.activation.ACTIVATIONS))
def test_fused_equals_primitives(name: str, mask: bool) -> None:
    """What a layer over several processes does between the primitives must end where the fused ones do."""
    values = layer(torch.float64, mask=mask)
    for key in ("mean", "var", "weight", "bias"):
        values[key] = values[key].double()
    output, count, mean, var, bits = run_forward(values, name, batchnorm.Activation(name).needs_bit)
    for one, other in zip((count, mean, var), OPS.moments(values["input"], values["mask"]), strict=True):
        torch.testing.assert_close(one, other)
    values |= {"mean": mean, "var": var}
    torch.testing.assert_close(OPS.normalize(*values.values(), *activation(name)), output)
    dy = torch.randn_like(output)
    fused = OPS.backward(dy, *values.values(), bits if bits.numel() else None, count, *activation(name), [True] * 4)
    dbias, dweight = OPS.grad_sums(dy, *values.values(), None, *activation(name))
    dx, dresidual = OPS.grad_input(dy, *values.values(), None, count, dbias, dweight, *activation(name), True)
    for one, other in zip(fused, (dx, dweight, dbias, dresidual), strict=True):
        torch.testing.assert_close(one, other)


def test_every_operator_is_reachable() -> None:
    names = {schema[: schema.index("(")].split(".")[0] for schema in SCHEMAS}
    assert names == {
        "moments",
        "double_moments",
        "normalize",
        "grad_sums",
        "grad_input",
        "forward",
        "backward",
        "train",
        "update_running",
    }
    assert all(hasattr(OPS, name) for name in names)


@vary
def test_strides_are_what_the_fakes_say(dtype: torch.dtype, format: str, mask: bool, name: str) -> None:
    """A compiler lays out memory by the fake: a kernel that returns other strides is read wrongly."""
    values = layer(dtype, format, mask)
    values["residual"] = FORMATS["transposed"](values["residual"])
    dy = FORMATS["channels-last"](torch.randn(4, 3, 2, 5).to(dtype))
    expected = torch.empty_like(values["input"]).stride()
    tensors = [values[key] for key in ("input", "weight", "bias", "residual", "mask")]
    shared = (dy, *values.values(), None)
    outputs = {
        "forward": OPS.forward(*tensors, *activation(name), False)[0],
        "normalize": OPS.normalize(*values.values(), *activation(name)),
        "backward": OPS.backward(*shared, torch.tensor(40), *activation(name), [True] * 4)[0],
        "residual": OPS.backward(*shared, torch.tensor(40), *activation(name), [True] * 4)[3],
        "grad_input": OPS.grad_input(*shared, None, None, None, *activation(name), True)[0],
    }
    assert {key: output.stride() for key, output in outputs.items()} == dict.fromkeys(outputs, expected)
    assert all(output.dtype == dtype for output in outputs.values())


@pytest.mark.parametrize("format", list(FORMATS))
def test_half_precision_without_parameters_has_float32_gradients(format: str) -> None:
    """The statistics and sums of half-precision input are float32 with affine=False too."""
    x, dy = (FORMATS[format](torch.randn(64, 4, 3, 3).bfloat16()) for _ in range(2))
    _, count, mean, var, _ = OPS.forward(x, None, None, None, None, 1e-5, "identity", [], False)
    assert (mean.dtype, var.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(mean, x.float().mean((0, 2, 3)))
    torch.testing.assert_close(var, x.float().var((0, 2, 3), correction=0))
    dx, dweight, dbias, _ = OPS.backward(
        dy, x, mean, var, None, None, None, None, None, count, 1e-5, "identity", [], [True, True, True, False]
    )
    standardized = (x.double() - mean.double().view(1, -1, 1, 1)) / (var.double().view(1, -1, 1, 1) + 1e-5).sqrt()
    torch.testing.assert_close(dweight.double(), (dy.double() * standardized).sum((0, 2, 3)), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(dbias.double(), dy.double().sum((0, 2, 3)), rtol=1e-4, atol=1e-3)
    assert (dx.dtype, dweight.dtype) == (torch.bfloat16, torch.float32)
