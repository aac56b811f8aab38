"""Plain-torch kernels: the readable specification of every operator, and the kernel of last resort.

Every function is out of place and differentiable to any order, in reverse and forward mode and under
``torch.func``: the same lines serve as kernels (where nothing faster applies) and as the formulas that higher
derivatives are taken of.

Shapes, throughout: ``input`` (N, C, *spatial) with any strides, ``mask`` (N, *spatial) bool with ``True`` where a
position is valid, per-channel vectors (C,), ``count`` () int64. ``D`` stands for all dimensions but the channel's.
Statistics are float32 for half-precision input and the input's dtype otherwise.

With ``x̂ = (x − mean) / √(var + eps)`` every layer computes

    z = x̂ · weight + bias + residual,        y = activation(z),        y = 0 where the mask is False
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..activation import Activation
from .bits import no_bits, pack_bits, unpack_bits
from .running import training_by

__all__ = [
    "backward",
    "double_moments",
    "forward",
    "grad_input",
    "grad_sums",
    "moments",
    "normalize",
    "statistics_dtype",
    "train",
]

# These take what they are given: whoever calls them has checked that it fits together.
CHECKS_TENSORS = False


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that statistics of such an input are computed and kept in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """``tensor`` in ``dtype``."""
    # `to` would say the same; but an exported graph records each call, even one that does nothing.
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def as_statistics(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """``tensor`` in the dtype that statistics of an input of ``dtype`` are kept in."""
    return cast(tensor, statistics_dtype(dtype))


def _but_channel(x: Tensor) -> list[int]:
    return [0, *range(2, x.dim())]


def _per_channel(vector: Tensor, x: Tensor) -> Tensor:
    return as_statistics(vector, x.dtype).view([1, -1] + [1] * (x.dim() - 2))  # (C,) -> (1, C, 1, ...)


def _positions(mask: Tensor) -> Tensor:
    return mask.unsqueeze(1)  # (N, *spatial) -> (N, 1, *spatial)


def count_values(x: Tensor, mask: Tensor | None) -> Tensor:
    """How many values each channel has, as a 0-d int64 tensor on the input's device: no synchronisation."""
    if mask is None:
        values = x.numel() // x.shape[1] if x.shape[1] else 0
        return torch.full((), values, dtype=torch.int64, device=x.device)
    return mask.sum(dtype=torch.int64)


def moments(input: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean and biased variance of every channel (Algorithm 1, lines 1 and 2).

    Corrected two-pass: the rounding error of the mean, ``shift``, is measured on the centred values and taken out
    of both moments, so that a large mean with a small spread loses nothing (Chan, Golub & LeVeque 1983).

    Returns:
        ``count`` () int64, ``mean`` (C,) and ``var`` (C,); mean and variance of nothing are 0.
    """
    count, mean, shift, var = _moments(input, mask)
    return count, mean + shift, var


def double_moments(input: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`moments`, with mean and variance in float64, for those who merge them with others.

    The mean of float32 values is known to more than float32 holds: rounded, it would be off by a part of the spread
    where it is large beside that, and so would a variance that is merged from several.
    """
    count, mean, shift, var = _moments(input, mask)
    return count, mean.to(torch.float64) + shift.to(torch.float64), var.to(torch.float64)


def _moments(input: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Count, mean, what the mean lacks, and biased variance."""
    dims = _but_channel(input)
    x = as_statistics(input, input.dtype)  # (N, C, *spatial)
    count = count_values(input, mask)  # ()
    values = count.clamp(min=1).to(x.dtype)  # ()
    x = masked(x, mask)
    mean = x.sum(dims) / values  # (C,)
    centred = masked(x - _per_channel(mean.detach(), x), mask)  # (N, C, *spatial)
    shift = centred.sum(dims) / values  # (C,)
    squares = (centred * centred).sum(dims) / values  # (C,)
    # Squares that overflow are infinite, and so may the shift's be: their difference would be NaN.
    var = torch.where(squares.isinf(), squares, squares - shift * shift).clamp(min=0)  # (C,)
    return count, mean.detach(), shift, var


def normalize(
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    eps: float,
    activation: Activation,
) -> Tensor:
    """``y = activation(x̂·weight + bias + residual)`` with the statistics given (Algorithm 1, lines 3 and 4).

    Returns:
        ``output`` (N, C, *spatial) of the input's dtype.
    """
    z = _preactivation(input, mean, var, weight, bias, residual, eps)
    return _finish(z, mask, activation).to(input.dtype)


def _finish(z: Tensor, mask: Tensor | None, activation: Activation) -> Tensor:
    return masked(activation(z), mask)


def _standardized(input: Tensor, mean: Tensor, var: Tensor, eps: float) -> Tensor:
    # The difference first: mean·invstd subtracted from x·invstd would cancel where the mean is large.
    return (input - _per_channel(mean, input)) * torch.rsqrt(_per_channel(var, input) + eps)  # (N, C, *spatial)


def _preactivation(
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
) -> Tensor:
    z = _standardized(input, mean, var, eps)  # (N, C, *spatial), in the statistics' dtype
    if weight is not None:
        z = z * _per_channel(weight, input)
    if bias is not None:
        z = z + _per_channel(bias, input)
    return z if residual is None else z + residual


def _grad_preactivation(
    grad_output: Tensor,
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    bits: Tensor | None,
    eps: float,
    activation: Activation,
) -> Tensor:
    dz = as_statistics(grad_output, input.dtype)  # (N, C, *spatial)
    if bits is not None:
        dz = activation.backward(dz, unpack_bits(bits, input))
    elif activation.name != "identity":
        z = _preactivation(input, mean, var, weight, bias, residual, eps)
        if activation.needs_bit:
            return masked(activation.backward(dz, activation.is_on(z)), mask)
        dz = dz * activation.derivative(z)
    return masked(dz, mask)


def masked(x: Tensor, mask: Tensor | None) -> Tensor:
    """``x`` where the mask is True, elsewhere 0. Never a product: padding may hold NaN."""
    return x if mask is None else torch.where(_positions(mask), x, 0.0)


def _valid_only(input: Tensor, residual: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    # At the door: the gradient of what is masked later is 0 times a NaN of the padding.
    return masked(input, mask), None if residual is None else masked(residual, mask)


def _standardized_or_zero(input: Tensor, mean: Tensor, var: Tensor, mask: Tensor | None, eps: float) -> Tensor:
    return masked(_standardized(input, mean, var, eps), mask)


def grad_sums(
    grad_output: Tensor,
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    bits: Tensor | None,
    eps: float,
    activation: Activation,
) -> tuple[Tensor, Tensor]:
    """``Σ dz`` and ``Σ dz·x̂`` over D: the gradients of bias and weight, and what the input's gradient needs.

    Returns:
        ``sum_dz`` (C,) and ``sum_dz_standardized`` (C,), in the statistics' dtype.
    """
    dz = _grad_preactivation(grad_output, input, mean, var, weight, bias, residual, mask, bits, eps, activation)
    dims = _but_channel(input)
    return dz.sum(dims), (dz * _standardized_or_zero(input, mean, var, mask, eps)).sum(dims)


def grad_input(
    grad_output: Tensor,
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    bits: Tensor | None,
    count: Tensor | None,
    sum_dz: Tensor | None,
    sum_dz_standardized: Tensor | None,
    eps: float,
    activation: Activation,
    keep_residual: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """The gradients of input and residual, ``dresidual = dz`` and (§3, the chain rule, collapsed).

        dx = weight / √(var + eps) · (dz − Σdz / count − x̂ · Σ(dz·x̂) / count)

    Without the sums the statistics are constants (evaluation) and ``dx = weight / √(var + eps) · dz``.

    Returns:
        ``grad_input`` and, with ``keep_residual``, ``grad_residual``, both (N, C, *spatial) of the input's dtype.
    """
    dz = _grad_preactivation(grad_output, input, mean, var, weight, bias, residual, mask, bits, eps, activation)
    dx = dz
    if count is not None and sum_dz is not None and sum_dz_standardized is not None:
        values = count.clamp(min=1).to(dz.dtype)
        standardized = _standardized_or_zero(input, mean, var, mask, eps)
        dx = dx - _per_channel(sum_dz / values, input)
        dx = dx - standardized * _per_channel(sum_dz_standardized / values, input)
    scale = torch.rsqrt(_per_channel(var, input) + eps)
    dx = dx * (scale if weight is None else scale * _per_channel(weight, input))
    dx = masked(dx, mask)
    return dx.to(input.dtype), dz.to(input.dtype) if keep_residual else None


def forward(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    eps: float,
    activation: Activation,
    keep_bits: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Training: ``moments`` and ``normalize`` in one call (Algorithm 1).

    Returns:
        ``output``, ``count``, ``mean``, ``var`` and ``bits``: with ``keep_bits`` one bit an element that says on
        which side of the activation's kink z was, so that the backward pass needs no residual; else empty.
    """
    input, residual = _valid_only(input, residual, mask)
    count, mean, var = moments(input, mask)
    z = _preactivation(input, mean, var, weight, bias, residual, eps)
    bits = pack_bits(activation.is_on(z)) if keep_bits else no_bits(input)
    return _finish(z, mask, activation).to(input.dtype), count, mean, var, bits


train = training_by(forward)


def backward(
    grad_output: Tensor,
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    bits: Tensor | None,
    count: Tensor | None,
    eps: float,
    activation: Activation,
    wanted: Sequence[bool] = (True, True, True, True),
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """``grad_sums`` and ``grad_input`` in one call; without ``count`` the statistics are constants (evaluation).

    Returns:
        ``grad_input``, ``grad_weight``, ``grad_bias``, ``grad_residual``; those of the parameters in the
        statistics' dtype, (C,); ``None`` for each of the four that ``wanted`` does not ask for.
    """
    input, residual = _valid_only(input, residual, mask)
    layer = (masked(grad_output, mask), input, mean, var, weight, bias, residual, mask, bits)
    training = count is not None
    sum_dz = sum_dz_standardized = dx = dz = None
    if wanted[1] or wanted[2] or (wanted[0] and training):
        sum_dz, sum_dz_standardized = grad_sums(*layer, eps, activation)
    if wanted[0] or wanted[3]:
        sums = (sum_dz, sum_dz_standardized) if training else (None, None)
        dx, dz = grad_input(*layer, count, sums[0], sums[1], eps, activation, wanted[3])
    every = (dx, sum_dz_standardized, sum_dz, dz)
    return tuple(gradient if want else None for gradient, want in zip(every, wanted, strict=True))  # type: ignore[return-value]
