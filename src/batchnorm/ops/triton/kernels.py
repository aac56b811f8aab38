"""What layers call on a GPU: :mod:`.compute`, past torch's dispatcher where nobody watches it.

What watches (fake tensors, dispatch modes, profilers, subclasses of tensors) sees operators, as on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...activation import Activation
from .. import ranks, running
from .. import schema as _schema  # noqa: F401  (defines the operators)
from . import compute

__all__ = [
    "CHECKS_TENSORS",
    "backward",
    "forward",
    "merge_parts",
    "normalize",
    "normalize_with_bits",
    "pack_moments",
    "train",
    "update_running",
]

CHECKS_TENSORS = True  # each refuses what does not fit, before anything is launched

_OPS = torch.ops.batchnorm
_PLAIN = (Tensor, torch.nn.Parameter)


def _is_watched(*tensors: Tensor | None) -> bool:
    for tensor in tensors:
        if tensor is not None and type(tensor) not in _PLAIN:
            return True
    return (
        torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
        or torch._C._autograd._profiler_enabled()
    )


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
    """As :func:`eager.forward`."""
    layer = (input, weight, bias, residual, mask, eps)
    if _is_watched(*layer[:5]):
        found: tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
        found = _OPS.forward(*layer, activation.name, activation.parameters, keep_bits)
        return found
    return compute.forward(*layer, activation, keep_bits)


def train(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    num_batches_tracked: Tensor | None,
    momentum: float | None,
    skip_nonfinite: bool,
    eps: float,
    activation: Activation,
    keep_bits: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As :func:`eager.train`."""
    buffers = (running_mean, running_var, num_batches_tracked, momentum, skip_nonfinite)
    layer = (input, weight, bias, residual, mask, *buffers, eps)
    if _is_watched(input, weight, bias, residual, mask, running_mean, running_var, num_batches_tracked):
        found: tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
        found = _OPS.train(*layer, activation.name, activation.parameters, keep_bits)
        return found
    return compute.train(*layer, activation, keep_bits)


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
    """As :func:`eager.normalize`."""
    layer = (input, mean, var, weight, bias, residual, mask, eps)
    if _is_watched(*layer[:7]):
        found: Tensor = _OPS.normalize(*layer, activation.name, activation.parameters)
        return found
    return compute.normalize(*layer, activation)


def normalize_with_bits(
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    eps: float,
    activation: Activation,
) -> tuple[Tensor, Tensor] | None:
    """``normalize``, and the bits that ``backward`` reads; None where somebody watches, for it is no operator."""
    layer = (input, mean, var, weight, bias, residual, mask, eps, activation)
    return None if _is_watched(input) else compute.normalize_with_bits(*layer)


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
    """As :func:`eager.backward`."""
    layer = (grad_output, input, mean, var, weight, bias, residual, mask, bits, count, eps)
    if _is_watched(*layer[:10]):
        found = _OPS.backward(*layer, activation.name, activation.parameters, wanted)
        return tuple(gradient if want else None for gradient, want in zip(found, wanted, strict=True))  # type: ignore[return-value]
    return compute.backward(*layer, activation, wanted)


def update_running(
    running_mean: Tensor,
    running_var: Tensor,
    num_batches_tracked: Tensor | None,
    count: Tensor | int,
    mean: Tensor,
    var: Tensor,
    momentum: float | Tensor,
    skip_nonfinite: bool,
) -> None:
    """As :func:`batchnorm.ops.running.update_running`."""
    buffers = (running_mean, running_var, num_batches_tracked)
    if running_mean.requires_grad or running_var.requires_grad:
        # Torch has to see that such a buffer is written to, and refuse.
        running.update_running(*buffers, count, mean, var, momentum, skip_nonfinite)
    elif _is_watched(*buffers, mean, var):
        if isinstance(count, int):
            count = torch.full((), count, dtype=torch.int64, device=mean.device)
        _OPS.update_running(*buffers, count, mean, var, momentum, skip_nonfinite)
    else:
        compute.update_running(*buffers, count, mean, var, momentum, skip_nonfinite)


def pack_moments(input: Tensor, mask: Tensor | None) -> Tensor:
    """As :func:`batchnorm.ops.ranks.pack_moments`."""
    return (ranks if _is_watched(input) else compute).pack_moments(input, mask)


def merge_parts(parts: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As :func:`batchnorm.ops.ranks.merge_parts`."""
    return (ranks if _is_watched(parts) else compute).merge_parts(parts, dtype)
