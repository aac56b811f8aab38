"""What ranks tell each other, as kernels pack and merge it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import ranks as plain
from .launch import Known, launch
from .ranks import merge_parts as merge_kernel
from .ranks import pack_moments as pack_kernel

__all__ = ["merge_parts", "packed"]

_CHANNELS = 128  # of a program: one a thread
_WARPS = 4

# The kernels are compiled for any numbers; of positions that take more than 32 bits, anew.
_known: tuple[Known, Known] = ({}, {})


def packed(input: Tensor, moments: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """What :func:`batchnorm.ops.ranks.pack_moments` gives for this input, of its ``moments`` in float64."""
    channels = input.shape[1]
    positions = input.numel() // channels
    part = input.new_empty(2 + 2 * channels, dtype=torch.float64)
    _launch(pack_kernel, (*moments, part), (positions, channels), _known[positions >= 2**31])
    return part


def merge_parts(parts: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As :func:`batchnorm.ops.ranks.merge_parts`, ``empty`` as int64."""
    ranks, width = parts.shape
    channels = width // 2 - 1
    if channels == 0:
        return plain.merge_parts(parts, dtype)
    # Each with memory of its own: a part of another's would be aligned otherwise, and every kernel compiled twice.
    empty, count = (parts.new_empty((), dtype=torch.int64) for _ in range(2))
    mean, var = (parts.new_empty(channels, dtype=dtype) for _ in range(2))
    _launch(merge_kernel, (parts.contiguous(), empty, count, mean, var), (ranks, channels), _known[0])
    return empty, count, mean, var


def _launch(kernel: Any, tensors: tuple[Tensor, ...], numbers: tuple[int, int], known: Known) -> None:
    programs = -(-numbers[1] // _CHANNELS)
    launch(kernel, programs, tensors[0], tensors, numbers, _WARPS, {"BLOCK": _CHANNELS}, None, known)
