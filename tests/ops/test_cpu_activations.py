"""The activations of the compiled kernels, each by itself: over the whole line, and each one in each dtype."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from batchnorm import Activation
from batchnorm.ops import cpu
from ops.cpu_sets import SETS, computing
from ops.kernel_cases import ACTIVATIONS, OPS, draw
from ops.kernel_checks import check
from ops.kernel_truth import reference_activation

if not cpu.available:
    pytest.skip(cpu.reason, allow_module_level=True)

HALF = (torch.bfloat16, torch.float16)
LINE = torch.cat([torch.linspace(-110, 110, 44001), torch.linspace(-4, 4, 16001)]).double()
LINE = torch.cat([LINE, 10 ** torch.linspace(-40, 18, 5801).double(), -(10 ** torch.linspace(-40, 18, 5801).double())])


@pytest.fixture(params=SETS, autouse=True)
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    with computing(request.param):
        yield request.param


def on_line(z: Tensor, activation: Activation) -> tuple[Tensor, Tensor]:
    """The activation and its derivative: in evaluation with mean 0, variance 1 and eps 0, z is the input."""
    one = torch.ones(1, dtype=torch.float64 if z.dtype == torch.float64 else torch.float32)
    described = (0.0, activation.name, list(activation.parameters))
    column, none = z.unsqueeze(1), (None,) * 4
    output = OPS.normalize(column, 0 * one, one, *none, *described)
    wanted = [True, False, False, False]
    gradient = OPS.backward(torch.ones_like(column), column, 0 * one, one, *none, None, None, *described, wanted)[0]
    return output[:, 0], gradient[:, 0]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_over_the_whole_line(dtype: torch.dtype, activation: Activation) -> None:
    """Absolute below 1, relative above: 4 steps (2 are seen), and 20 for gradients, as torch's own silu needs 8.

    The derivative of gelu_tanh multiplies 1 − sigmoid, known to half a step, by up to 90.
    """
    z = LINE.to(dtype)
    step = torch.finfo(dtype).eps
    true = reference_activation(activation)
    x = z.double().numpy()
    with np.errstate(all="ignore"):
        wanted = true.value(x), true.derivative(x)
    allowed = (4, 90 if activation.name == "gelu_tanh" else 20)
    for what, found, formula, steps in zip(
        ("value", "derivative"), on_line(z, activation), wanted, allowed, strict=True
    ):
        expected = np.where(np.isnan(formula), (x > 0).astype(float), formula)  # gelu_tanh's cube overflows far out
        error = np.abs(found.double().numpy() - expected) / np.maximum(1, np.abs(expected))
        worst = int(np.argmax(error))
        assert error[worst] <= steps * step, f"{what} at {x[worst]:g}: {found[worst]:g}, expected {expected[worst]:g}"


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_every_half_precision_number_is_read_and_rounded_as_torch_does(dtype: torch.dtype) -> None:
    numbers = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    one = torch.ones(1)
    for weight in (1.0, 1 + 2**-8, 1 + 2**-5, 0.3):  # exact ties among the products
        scale = torch.tensor([weight])
        wanted = (numbers.float() * scale + 0.0).to(dtype)  # and the bias: no negative zero
        for x in (numbers.view(-1, 1), numbers.view(1, 1, -1)):  # as rows and as a plane
            output = OPS.normalize(x, 0 * one, one, scale, None, None, None, 0.0, "identity", []).flatten()
            assert torch.equal(output.isnan(), wanted.isnan())
            kept = ~wanted.isnan()
            assert torch.equal(output[kept].view(torch.int16), wanted[kept].view(torch.int16))


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALF], ids=str)
@pytest.mark.parametrize(("shape", "mask"), [((5, 19, 7, 7), None), ((33, 21), None), ((6, 8, 5, 5), "runs")], ids=str)
def test_each_in_each_dtype(
    shape: tuple[int, ...], mask: str | None, dtype: torch.dtype, activation: Activation
) -> None:
    for residual, format in ((None, "contiguous"), ("contiguous", "channels-last")):
        check(draw(shape, dtype, format, residual=residual, mask=mask, activation=activation))
