"""Design rule 3, for whatever kernels serve: NaN and inf as in torch, never in the buffers, none out of the padding."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from batchnorm import Activation
from batchnorm.functional import batch_norm
from batchnorm.ops import eager
from ops.kernel_cases import FORMATS_AND_EXPANDED, OPS, draw

BAD = (float("nan"), float("inf"), -float("inf"))
# Here torch is no guide: what its kernels make of the gradient at a NaN differs between its vectorised and its scalar
# ones (activation.py says which is taken), and 0·inf is NaN in those of gelu. The specification may say it instead.
OURS_TO_SAY = ("relu6", "hardtanh", "hardswish", "elu", "gelu", "gelu_tanh")

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


def check_as_in_torch(
    activation: Activation,
    training: bool,
    shapes: Iterable[tuple[tuple[int, ...], str]],
    places: Iterable[int] = (0, 37, -1),
    device: str = "cpu",
) -> None:
    """Each bad value in each tensor at each of the places, as in torch on the CPU."""
    for shape, format in shapes:
        for where in ("input", "grad_output", "residual"):
            for bad in BAD:
                for place in places:
                    generator = torch.Generator("cpu").manual_seed(0)
                    sizes = {"input": shape, "grad_output": shape, "residual": shape}
                    sizes |= {"weight": shape[1:2], "bias": shape[1:2]}
                    tensors = {
                        name: torch.randn(size, generator=generator, dtype=torch.float64)
                        for name, size in sizes.items()
                    }
                    tensors[where].view(-1)[place] = bad
                    tensors = {
                        name: FORMATS_AND_EXPANDED[format](t) if t.dim() > 1 else t for name, t in tensors.items()
                    }
                    there = {name: tensor.to(device) for name, tensor in tensors.items()}
                    found = step(ours, there, training, activation)
                    wanted = [step(torchs, tensors, training, activation)]
                    if activation.name in OURS_TO_SAY:
                        wanted.append(wanted[0] | by_specification(tensors, training, activation))
                    for name, value in found.items():
                        assert any(
                            torch.allclose(value.cpu(), one[name], rtol=1e-9, atol=1e-9, equal_nan=True)
                            for one in wanted
                        ), f"{name}, {shape} {format}, {bad} in {where} at {place}"


def check_every_place_is_seen(
    dtype: torch.dtype,
    shapes: Iterable[tuple[tuple[int, ...], str]],
    step: int = 1,
    device: str = "cpu",
) -> None:
    """One value anywhere (in each ``step``-th place) makes its channel's statistics NaN, and no other channel's."""
    for shape, format in shapes:
        x = torch.randn(shape, device=device)
        for place in range(0, x.numel(), step):
            for bad in BAD[:2]:
                dirty = x.clone()
                dirty.view(-1)[place] = bad
                channel = place // (x[0, 0].numel()) % shape[1]
                _, mean, var = OPS.moments(FORMATS_AND_EXPANDED[format](dirty.to(dtype)), None)
                finite = torch.ones(shape[1], dtype=torch.bool, device=device)
                finite[channel] = False
                assert torch.equal(torch.isfinite(mean), finite)
                assert torch.equal(torch.isfinite(var), finite)
                torch.testing.assert_close(mean[channel].cpu(), torch.tensor(bad), equal_nan=True)
                assert torch.isnan(var[channel])


def check_buffers_keep_out(
    bad: float,
    shape: tuple[int, ...],
    channels: Iterable[int] | None = None,
    device: str = "cpu",
) -> None:
    x = torch.randn(shape, device=device)

    def buffers() -> tuple[Tensor, Tensor, Tensor]:
        mean = torch.full(shape[1:2], 0.5, device=device)
        return mean, torch.full_like(mean, 2.0), torch.tensor(7, device=device)

    for channel in range(shape[1]) if channels is None else channels:
        dirty = x.clone()
        dirty[-1, channel] = bad
        for nonfinite in ("skip", "propagate"):
            mean, var, seen = buffers()
            batch_norm(
                dirty, mean, var, training=True, momentum=None, nonfinite=nonfinite, num_batches_tracked=seen
            )  # the average over all batches: what is skipped is not counted
            if nonfinite == "skip":
                assert (mean == 0.5).all()
                assert (var == 2.0).all()
                assert int(seen) == 7
            else:
                wanted_mean, wanted_var = (buffer.cpu() for buffer in buffers()[:2])
                F.batch_norm(dirty.cpu(), wanted_mean, wanted_var, training=True, momentum=1 / 8)
                torch.testing.assert_close(mean.cpu(), wanted_mean, equal_nan=True)
                torch.testing.assert_close(var.cpu(), wanted_var, equal_nan=True)
                assert int(seen) == 8


def check_variance_that_the_buffer_cannot_hold(device: str = "cpu") -> None:
    x = 1e3 * torch.randn(64, 1, device=device)
    mean, var = (torch.full((1,), value, dtype=torch.float16, device=device) for value in (0.0, 1.0))
    seen = torch.tensor(0, device=device)
    batch_norm(x, mean, var, training=True, num_batches_tracked=seen)
    assert (float(mean), float(var), int(seen)) == (0.0, 1.0, 0)


def check_what_float_cannot_square(
    shape: tuple[int, ...], sizes: Iterable[float] = (3e38, 1e25), exact: bool = True, device: str = "cpu"
) -> None:
    """The mean is what double makes of it, or near that; the variance overflows to inf, not to NaN."""
    sign = torch.where(torch.rand(shape, device=device) < 0.5, -1.0, 1.0)
    for size in sizes:
        _, mean, var = OPS.moments(size * sign, None)
        wanted = (size * sign).double().mean([0, *range(2, len(shape))]).float()
        torch.testing.assert_close(mean, wanted, **({} if exact else {"rtol": 0.0, "atol": 1e-6 * size}))
        assert torch.isposinf(var).all()


def check_nothing_leaks(
    shape: tuple[int, ...],
    format: str,
    mask: str,
    activation: Activation,
    worst: tuple[float, ...] = BAD,
    device: str = "cpu",
) -> None:
    """What lies in the padding of input, gradient and residual changes no bit of any result."""
    clean, dirty = (
        draw(shape, torch.float32, format, residual=format, mask=mask, activation=activation, device=device)
        for _ in range(2)
    )
    assert clean.mask is not None
    assert dirty.residual is not None
    padding = ~clean.mask.unsqueeze(1).expand(shape)
    for tensor, bad in zip((dirty.input, dirty.grad_output, dirty.residual), worst, strict=True):
        tensor[padding] = bad
    found = []
    for case in (clean, dirty):
        output, count, mean, var, bits = case.forward(keep_bits=activation.needs_bit)
        layer = (case.grad_output, *case.layer(mean, var), bits if activation.needs_bit else None)
        gradients = OPS.backward(*layer, count, *case.described, [True] * 4)
        in_evaluation = OPS.backward(*layer, None, *case.described, [True] * 4)
        for padded in (output, gradients[0], gradients[3], in_evaluation[0], in_evaluation[3]):
            assert (padded[padding] == 0).all()
        found.append((output, mean, var, *gradients, *in_evaluation))
    for place, (one, other) in enumerate(zip(*found, strict=True)):
        assert torch.equal(one, other), f"result {place}"
