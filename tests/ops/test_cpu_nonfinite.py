"""Design rule 3 in the compiled kernels: NaN and inf as in torch, never in the buffers, and none out of the padding."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from batchnorm import Activation
from batchnorm.functional import batch_norm
from batchnorm.ops import cpu, eager
from ops.cpu_cases import ACTIVATIONS, FORMATS_AND_EXPANDED, OPS, SETS, computing, draw

if not cpu.available:
    pytest.skip(cpu.reason, allow_module_level=True)

BAD = (float("nan"), float("inf"), -float("inf"))
# Planes, planes as rows, rows with a short one, channels-last of whole and of broken registers.
SHAPES = (
    ((4, 5, 7, 7), "contiguous"),
    ((4, 5, 3, 3), "contiguous"),
    ((40, 5), "contiguous"),
    ((4, 5, 7, 7), "channels-last"),
    ((8, 16, 4, 4), "channels-last"),
)
# Here torch is no guide: what its kernels make of the gradient at a NaN differs between its vectorised and its scalar
# ones (activation.py says which is taken), and 0·inf is NaN in those of gelu. The specification may say it instead.
OURS_TO_SAY = ("relu6", "hardtanh", "hardswish", "elu", "gelu", "gelu_tanh")


@pytest.fixture(params=SETS, autouse=True)
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    with computing(request.param):
        yield request.param


Layer = Callable[..., Tensor]
NAMES = ("output", "running_mean", "running_var", "grad_input", "grad_weight", "grad_bias", "grad_residual")


def ours(
    x: Tensor, mean: Tensor, var: Tensor, w: Tensor, b: Tensor, r: Tensor, training: bool, a: Activation
) -> Tensor:
    return batch_norm(x, mean, var, w, b, training, 0.3, activation=a, residual=r, nonfinite="propagate")


def torchs(
    x: Tensor, mean: Tensor, var: Tensor, w: Tensor, b: Tensor, r: Tensor, training: bool, a: Activation
) -> Tensor:
    return a(F.batch_norm(x, mean, var, w, b, training, 0.3) + r)


def step(layer: Layer, tensors: dict[str, Tensor], training: bool, activation: Activation) -> dict[str, Tensor]:
    x, r, w, b = (tensors[name].detach().requires_grad_() for name in ("input", "residual", "weight", "bias"))
    mean, var = torch.full_like(w, 0.5).detach(), torch.full_like(w, 2.0).detach()
    output = layer(x, mean, var, w, b, r, training, activation)
    gradients = torch.autograd.grad(output, (x, w, b, r), tensors["grad_output"])
    return dict(zip(NAMES, (output.detach(), mean, var, *gradients), strict=True))


def by_specification(tensors: dict[str, Tensor], training: bool, activation: Activation) -> dict[str, Tensor]:
    x, r, w, b, dy = (tensors[name] for name in ("input", "residual", "weight", "bias", "grad_output"))
    count, mean, var = eager.moments(x) if training else (None, torch.full_like(w, 0.5), torch.full_like(w, 2.0))
    gradients = eager.backward(dy, x, mean, var, w, b, r, None, None, count, 1e-5, activation)
    return {name: g for name, g in zip(NAMES[3:], gradients, strict=True) if g is not None}


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_as_in_torch(activation: Activation, training: bool) -> None:
    for shape, format in SHAPES:
        for where in ("input", "grad_output", "residual"):
            for bad in BAD:
                for place in (0, 37, -1):
                    generator = torch.Generator().manual_seed(0)
                    tensors = {
                        name: torch.randn(size, generator=generator, dtype=torch.float64)
                        for name, size in (
                            ("input", shape),
                            ("grad_output", shape),
                            ("residual", shape),
                            ("weight", shape[1]),
                            ("bias", shape[1]),
                        )
                    }
                    tensors[where].view(-1)[place] = bad
                    tensors = {
                        name: FORMATS_AND_EXPANDED[format](t) if t.dim() > 1 else t for name, t in tensors.items()
                    }
                    found = step(ours, tensors, training, activation)
                    wanted = [step(torchs, tensors, training, activation)]
                    if activation.name in OURS_TO_SAY:
                        wanted.append(wanted[0] | by_specification(tensors, training, activation))
                    for name, value in found.items():
                        assert any(
                            torch.allclose(value, one[name], rtol=1e-9, atol=1e-9, equal_nan=True) for one in wanted
                        ), f"{name}, {shape} {format}, {bad} in {where} at {place}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_place_of_a_register_is_seen(dtype: torch.dtype) -> None:
    """One value anywhere makes its channel's statistics NaN, and no other channel's."""
    for shape, format in (((2, 3, 37), "contiguous"), ((5, 37), "contiguous"), ((3, 24, 3), "channels-last")):
        x = torch.randn(shape)
        for place in range(x.numel()):
            for bad in BAD[:2]:
                dirty = x.clone()
                dirty.view(-1)[place] = bad
                channel = place // (x[0, 0].numel()) % shape[1]
                _, mean, var = OPS.moments(FORMATS_AND_EXPANDED[format](dirty.to(dtype)), None)
                finite = torch.ones(shape[1], dtype=torch.bool)
                finite[channel] = False
                assert torch.equal(torch.isfinite(mean), finite)
                assert torch.equal(torch.isfinite(var), finite)
                torch.testing.assert_close(mean[channel], torch.tensor(bad), equal_nan=True)
                assert torch.isnan(var[channel])


@pytest.mark.parametrize("shape", [(4, 5, 7, 7), (64, 5), (3, 5, 4)], ids=str)
@pytest.mark.parametrize("bad", BAD, ids=str)
def test_the_buffers_keep_out_what_is_not_finite(bad: float, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    for channel in range(shape[1]):
        dirty = x.clone()
        dirty[-1, channel] = bad
        for nonfinite in ("skip", "propagate"):
            mean, var, seen = torch.full((5,), 0.5), torch.full((5,), 2.0), torch.tensor(7)
            batch_norm(
                dirty, mean, var, training=True, momentum=None, nonfinite=nonfinite, num_batches_tracked=seen
            )  # the average over all batches: what is skipped is not counted
            if nonfinite == "skip":
                assert (mean == 0.5).all()
                assert (var == 2.0).all()
                assert int(seen) == 7
            else:
                wanted_mean, wanted_var = torch.full((5,), 0.5), torch.full((5,), 2.0)
                F.batch_norm(dirty, wanted_mean, wanted_var, training=True, momentum=1 / 8)
                torch.testing.assert_close(mean, wanted_mean, equal_nan=True)
                torch.testing.assert_close(var, wanted_var, equal_nan=True)
                assert int(seen) == 8


def test_a_variance_that_the_buffer_cannot_hold_is_kept_out() -> None:
    mean, var, seen = torch.zeros(1, dtype=torch.float16), torch.ones(1, dtype=torch.float16), torch.tensor(0)
    batch_norm(1e3 * torch.randn(64, 1), mean, var, training=True, num_batches_tracked=seen)
    assert (float(mean), float(var), int(seen)) == (0.0, 1.0, 0)


@pytest.mark.parametrize("shape", [(6, 3, 5, 7), (500, 8), (3, 3, 3)], ids=str)
def test_values_that_float_cannot_square_or_subtract(shape: tuple[int, ...]) -> None:
    """The mean is what double makes of it; the variance overflows to inf, not to NaN."""
    sign = torch.where(torch.rand(shape) < 0.5, -1.0, 1.0)
    for size in (3e38, 1e25):
        _, mean, var = OPS.moments(size * sign, None)
        dims = [0, *range(2, len(shape))]
        torch.testing.assert_close(mean, (size * sign).double().mean(dims).float())
        assert torch.isposinf(var).all()


@pytest.mark.parametrize("mask", ["random", "runs", "sample", "one", "none"])
@pytest.mark.parametrize("format", ["contiguous", "channels-last"])
@pytest.mark.parametrize("shape", [(6, 3, 5, 7), (6, 8, 5, 7), (60, 8), (60, 3), (5, 24, 33)], ids=str)
def test_nothing_leaks_out_of_the_padding(shape: tuple[int, ...], format: str, mask: str) -> None:
    for activation, worst in itertools.product(ACTIVATIONS, (BAD, (1e30, -1e30, 1e30))):
        clean = draw(shape, torch.float32, format, residual=format, mask=mask, activation=activation)
        dirty = draw(shape, torch.float32, format, residual=format, mask=mask, activation=activation)
        assert clean.mask is not None
        assert dirty.residual is not None
        padding = ~clean.mask.unsqueeze(1).expand(shape)
        for tensor, bad in zip((dirty.input, dirty.grad_output, dirty.residual), worst, strict=True):
            tensor[padding] = bad
        found = []
        for case in (clean, dirty):
            output, count, mean, var, bits = case.forward(keep_bits=True)
            layer = (case.grad_output, *case.layer(mean, var), bits if activation.needs_bit else None)
            gradients = OPS.backward(*layer, count, *case.described, [True] * 4)
            in_evaluation = OPS.backward(*layer, None, *case.described, [True] * 4)
            for padded in (output, gradients[0], gradients[3], in_evaluation[0], in_evaluation[3]):
                assert (padded[padding] == 0).all()
            found.append((output, mean, var, bits, *gradients, *in_evaluation))
        for one, other in zip(*found, strict=True):
            assert torch.equal(one, other)
