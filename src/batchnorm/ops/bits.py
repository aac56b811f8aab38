"""One bit an element: what a piecewise linear activation's derivative needs to be kept.

How many bytes that is belongs to the contract; the layout here is that of the Python kernels. A compiled kernel has its
own: only its own backward reads it.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["bits_size", "no_bits", "pack_bits", "unpack_bits"]


def bits_size(like: Tensor) -> int:
    """How many bytes the bits of such an input (N, C, *spatial) take: each channel's, rounded up to whole bytes."""
    values = like.shape[0]
    for size in like.shape[2:]:
        values *= size
    return like.shape[1] * ((values + 7) // 8)


def no_bits(like: Tensor) -> Tensor:
    """What stands for the bits where none are kept: an operator cannot return nothing."""
    return torch.empty(0, dtype=torch.uint8, device=like.device)


def pack_bits(on: Tensor) -> Tensor:
    """A bool tensor (N, C, *spatial) as uint8, eight elements a byte, in the order of its dimensions, then zeros."""
    flat = on.flatten()
    padding = 8 * bits_size(on) - flat.numel()
    if padding:
        flat = torch.nn.functional.pad(flat, (0, padding))
    eights = flat.view(-1, 8)
    packed = eights[:, 0].to(torch.uint8)
    for place in range(1, 8):
        packed = packed | (eights[:, place].to(torch.uint8) << place)
    return packed


def unpack_bits(bits: Tensor, like: Tensor) -> Tensor:
    """The inverse of :func:`pack_bits`: a bool tensor of the shape of ``like``."""
    places = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return (((bits.unsqueeze(1) >> places) & 1) != 0).flatten()[: like.numel()].view(like.shape)
