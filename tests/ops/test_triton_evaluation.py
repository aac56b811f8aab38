"""In evaluation with a residual, the bits for the backward pass are the Triton kernels' own."""

from __future__ import annotations

from collections.abc import Iterator
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed")

from batchnorm import Activation, functional
from batchnorm.ops import gradients
from ops.triton_interpreter import is_interpreted
from ops.triton_serving import serving

if not is_interpreted:
    pytest.skip("Triton compiles here: test_gpu.py has frozen layers", allow_module_level=True)

# The last one's output does not tell the side of its kink: plain operations keep the residual.
ACTIVATIONS = ("relu", "relu6", "hardtanh", "leaky_relu", Activation("leaky_relu", negative_slope=-0.5))
CHANNELS = 3


@pytest.fixture(scope="module", autouse=True)
def _served() -> Iterator[None]:
    with serving():
        yield


def _drawn(shape: tuple[int, ...]) -> list[Tensor]:
    """Input, residual, weight and bias."""
    sizes = (shape, shape, (CHANNELS,), (CHANNELS,))
    return [torch.randn(size, requires_grad=True) for size in sizes]


def _call(given: list[Tensor], activation: str | Activation, mask: Tensor | None) -> Tensor:
    x, residual, weight, bias = given
    statistics = torch.linspace(-1, 1, CHANNELS), torch.linspace(0.5, 2, CHANNELS)
    return functional.batch_norm(x, *statistics, weight, bias, residual=residual, activation=activation, mask=mask)


def _plainly(given: list[Tensor], activation: str | Activation, mask: Tensor | None) -> Tensor:
    x, residual, weight, bias = given
    statistics = torch.linspace(-1, 1, CHANNELS), torch.linspace(0.5, 2, CHANNELS)
    z = torch.nn.functional.batch_norm(x, *statistics, weight, bias) + residual
    activation = Activation(activation) if isinstance(activation, str) else activation
    output = activation(z)
    return output if mask is None else torch.where(mask.unsqueeze(1), output, 0.0)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("shape", [(4, CHANNELS, 5, 7), (33, CHANNELS)], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_by_the_kernels_bits(activation: str | Activation, shape: tuple[int, ...], masked: bool) -> None:
    given = _drawn(shape)
    mask = torch.rand(shape[0], *shape[2:]) < 0.7 if masked else None
    with patch.object(gradients, "pack_bits", lambda on: pytest.fail("plain operations packed the bits")):
        found = torch.autograd.grad(_call(given, activation, mask).pow(3).sum(), given)
    wanted = torch.autograd.grad(_plainly(given, activation, mask).pow(3).sum(), given)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_second_derivatives_read_them_too() -> None:
    given = _drawn((4, CHANNELS, 5))
    results = []
    for call in (_call, _plainly):
        (slope,) = torch.autograd.grad(call(given, "relu", None).pow(3).sum(), given[:1], create_graph=True)
        results.append(torch.autograd.grad(slope.pow(2).sum(), given))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


def test_who_watches_sees_an_operator() -> None:
    given = _drawn((4, CHANNELS, 5))
    with torch.profiler.profile() as profile:
        output = _call(given, "relu", None)
    assert "batchnorm::normalize" in {event.key for event in profile.key_averages()}
    found, wanted = (torch.autograd.grad(each.sum(), given) for each in (output, _plainly(given, "relu", None)))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
