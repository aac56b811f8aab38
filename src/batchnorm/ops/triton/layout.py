"""How a tensor is walked: its extent as kernels take it, and every other tensor in the same order."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

__all__ = ["Walk", "divisor", "is_dense", "walk"]

_LONGEST_RUN = 16  # values: the most that one instruction moves, of the smallest dtype, and what Triton looks for
# Offsets of lanes beyond the end are computed too, and must not come around.
_WIDE_FROM = 2**31 - 2**24


@dataclass(frozen=True)
class Walk:
    """One walk over a dense tensor (N, C, *spatial); :mod:`.addresses` describes the two orders.

    Attributes:
        rows: Whether the channels of a position lie side by side.
        wide: Whether offsets take 64 bits.
        unit: The power of two, at most 16, that divides what lies side by side.
        channels: C.
        positions: M, the values a channel has.
        extent: samples, channels, space, magic and shift, as kernels take them.
    """

    rows: bool
    wide: bool
    unit: int
    channels: int
    positions: int
    extent: tuple[int, int, int, int, int]

    def lies(self, tensor: Tensor) -> bool:
        """Whether a tensor of the same shape lies in this order."""
        return is_dense(tensor.shape, tensor.stride(), self.rows)

    def order(self, tensor: Tensor) -> Tensor:
        """``tensor``, of the same shape, in this order; itself where it lies so."""
        if self.lies(tensor):
            return tensor
        return tensor.movedim(1, -1).contiguous().movedim(-1, 1) if self.rows else tensor.contiguous()


def divisor(space: int) -> tuple[int, int]:
    """``magic`` and ``shift`` with ⌊p / space⌋ = (⌊p·magic / 2³²⌋ + p) >> shift for 0 ≤ p < 2³¹.

    Granlund and Montgomery, Division by invariant integers using multiplication (1994), §4. Both as signed 32 bits.

    Example:
        >>> magic, shift = divisor(49)
        >>> [((p * (magic % 2**32) >> 32) + p) >> shift for p in (48, 49, 2**31 - 1)] == [0, 1, (2**31 - 1) // 49]
        True
    """
    shift = (space - 1).bit_length()
    magic = ((1 << 32) * ((1 << shift) - space)) // space + 1
    return magic - (1 << 32) if magic >= 1 << 31 else magic, shift


@functools.lru_cache(4096)
def is_dense(shape: Sequence[int], strides: Sequence[int], rows: bool) -> bool:
    """Whether such a tensor is contiguous, or channels-last. Where a dimension has one value, its stride is nothing."""
    inner = (*reversed(shape[2:]), shape[0])
    sizes, steps = (shape[1], *inner), (strides[1], *reversed(strides[2:]), strides[0])
    if not rows:
        sizes, steps = tuple(reversed(shape)), tuple(reversed(strides))
    expected = 1
    for size, step in zip(sizes, steps, strict=True):
        if size != 1 and step != expected:
            return False
        expected *= size
    return True


def walk(shape: Sequence[int], strides: Sequence[int]) -> Walk:
    """How a tensor (N, C, *spatial) that is not empty is walked.

    One that is neither contiguous nor channels-last is walked as planes, in a copy (:meth:`Walk.order`).
    """
    samples, channels = shape[:2]
    values = math.prod(shape)
    space = values // (samples * channels)
    rows = space == 1 or (not is_dense(shape, strides, False) and is_dense(shape, strides, True))
    wide = values >= _WIDE_FROM
    unit = math.gcd(channels if rows else space, _LONGEST_RUN)
    # Rows divide nothing, and 64 bits by plain division: numbers for neither, or each would be a program of its own.
    magic, shift = (0, 0) if rows or wide else divisor(space // unit)
    sides = (channels // unit, space) if rows else (channels, space // unit)
    return Walk(rows, wide, unit, channels, samples * space, (samples, *sides, magic, shift))
