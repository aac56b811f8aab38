"""The kernels under the names and signatures of :mod:`batchnorm.ops.eager`: what is launched, on what.

Nothing here waits for the device or asks it anything, and all memory is torch's allocator's: a CUDA graph captures it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...activation import IDENTITY, Activation
from .. import eager, ranks
from ..bits import bits_size, no_bits
from ..running import is_recomputation
from .backward import backward, grad_input, grad_sums
from .launch import launch
from .merging import merge_parts, packed
from .moments import finish_moments, partial_moments
from .moving import NO_MOVE, Buffers, Move, update_running
from .normalize import normalize as normalize_kernel
from .passes import Pass, activation_constants
from .whole import whole_forward

__all__ = [
    "backward",
    "double_moments",
    "forward",
    "grad_input",
    "grad_sums",
    "merge_parts",
    "moments",
    "normalize",
    "normalize_with_bits",
    "pack_moments",
    "train",
    "update_running",
]


def moments(input: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`eager.moments`."""
    if input.numel() == 0:
        return eager.moments(input, mask)
    here = Pass(input, mask)
    return _moments(here, here.plan.dtype)


def double_moments(input: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`eager.double_moments`."""
    if input.numel() == 0:
        return eager.double_moments(input, mask)
    return _moments(Pass(input, mask), torch.float64)


def pack_moments(input: Tensor, mask: Tensor | None) -> Tensor:
    """As :func:`batchnorm.ops.ranks.pack_moments`."""
    if input.numel() == 0:
        return ranks.pack_moments(input, mask)
    return packed(input, double_moments(input, mask))


def _moments(here: Pass, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    plan, channels = here.plan, here.walk.channels
    found = here.new_count(), here.new_vector(dtype), here.new_vector(dtype)
    whole = plan.fits_whole("whole_forward")
    if whole is not None:
        whole_tensors = (here.input, None, here.mask, None, None, None, None, *found)
        nothing = activation_constants(IDENTITY, 0.0)
        here.launch(whole_forward, whole.blocks(channels), whole, whole_tensors, here.walk.extent, **nothing)
        return found
    part = plan.cut("partial_moments")
    counts = None if here.mask is None else here.new_parts(part.slices)
    parts = (counts, *(here.new_parts(part.slices) for _ in range(3)))
    tensors, numbers = (here.input, here.mask, *parts), (*here.walk.extent, part.steps)
    constants = {"GUARD": here.guards(part), "PLACES": part.places}
    here.launch(partial_moments, part.slices * part.blocks(channels), part, tensors, numbers, **constants)
    sizes = (*here.walk.extent, part.slices, part.size)
    merge = plan.merge(part.slices)
    constants = {"SLICES": merge.slices, "CHANNELS": merge.channels}
    programs, tensors = -(-channels // merge.channels), (*parts, *found)
    launch(finish_moments, programs, here.given, tensors, sizes, merge.warps, constants, plan.constants, plan.known)
    return found


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
    if input.numel() == 0:
        return eager.normalize(input, mean, var, weight, bias, residual, mask, eps, activation)
    here = Pass(input, mask)
    vectors = (*here.statistics(mean, var), *here.parameters(weight, bias))
    return _normalize(here, vectors, here.ordered_or_none(residual), None, None, activation_constants(activation, eps))


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
) -> tuple[Tensor, Tensor]:
    """:func:`normalize`, and the bits that ``backward``, ``grad_sums`` and ``grad_input`` read here."""
    bits = input.new_empty(bits_size(input), dtype=torch.uint8)
    if input.numel() == 0:
        return eager.normalize(input, mean, var, weight, bias, residual, mask, eps, activation), bits
    here = Pass(input, mask)
    vectors = (*here.statistics(mean, var), *here.parameters(weight, bias))
    layer = activation_constants(activation, eps)
    return _normalize(here, vectors, here.ordered_or_none(residual), bits, None, layer), bits


def _normalize(
    here: Pass,
    vectors: tuple[Tensor | None, ...],
    residual: Tensor | None,
    bits: Tensor | None,
    move: Move | None,
    layer: dict[str, Any],
) -> Tensor:
    output = here.new_tensor()
    piece = here.plan.cut("normalize")
    moved, momentum, constants = NO_MOVE if move is None else (move.tensors, move.momentum, move.constants)
    tensors = (here.input, residual, here.mask, *vectors, output, bits, *moved)
    numbers = (*momentum, *here.walk.extent)
    programs = piece.slices * piece.blocks(here.walk.channels) + (move is not None)
    here.launch(normalize_kernel, programs, piece, tensors, numbers, **constants, **layer, PLACES=piece.places)
    return here.result(output)


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
    if input.numel() == 0:
        return eager.forward(input, weight, bias, residual, mask, eps, activation, keep_bits)
    return _train(input, weight, bias, residual, mask, None, None, False, eps, activation, keep_bits)


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
    buffers: Buffers | None = None
    if running_mean is not None and running_var is not None:
        buffers = (running_mean, running_var, num_batches_tracked)
    if input.numel() == 0:
        buffers_or_none = (None, None, None) if buffers is None else buffers
        settings = (momentum, skip_nonfinite, eps, activation, keep_bits)
        return eager.train(input, weight, bias, residual, mask, *buffers_or_none, *settings)
    if mask is None and input.dim() > 1 and input.numel() == input.shape[1]:
        raise RuntimeError(f"batchnorm: one value a channel in training, of shape {tuple(input.shape)}.")
    if is_recomputation():
        buffers = None
    return _train(input, weight, bias, residual, mask, buffers, momentum, skip_nonfinite, eps, activation, keep_bits)


def _train(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    buffers: Buffers | None,
    momentum: float | None,
    skip_nonfinite: bool,
    eps: float,
    activation: Activation,
    keep_bits: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    here = Pass(input, mask)
    layer = activation_constants(activation, eps)
    # Whatever does not fit is refused before a buffer moves.
    weight, bias = here.parameters(weight, bias)
    residual = here.ordered_or_none(residual)
    if buffers is not None:
        here.statistics(*buffers[:2])
    bits = torch.empty(bits_size(input), dtype=torch.uint8, device=here.device) if keep_bits else None
    kept = no_bits(input) if bits is None else bits
    whole = here.plan.fits_whole("whole_forward")
    if whole is None:
        count, mean, var = _moments(here, here.plan.dtype)
        move = None if buffers is None else Move(buffers, count, momentum, skip_nonfinite)
        output = _normalize(here, (mean, var, weight, bias), residual, bits, move, layer)
    else:
        output = here.new_tensor()
        count, mean, var = here.new_count(), here.new_vector(), here.new_vector()
        move = None if buffers is None else Move(buffers, count, momentum, skip_nonfinite)
        tensors = (here.input, residual, here.mask, weight, bias, output, bits, count, mean, var)
        here.launch(whole_forward, whole.blocks(here.walk.channels), whole, tensors, here.walk.extent, **layer)
        output = here.result(output)
        if move is not None:
            move.launch(mean, var, here.plan.known)
    if move is not None:
        move.finish()
    return output, count, mean, var, kept
