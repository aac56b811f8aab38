"""Where values are: a position of the batch and a channel become an offset into memory.

A position p counts through the batch without its channels: p = n·S + s, with S values a sample and channel, M = N·S of
them in all. Memory is walked in one of two ways, both of which a kernel gets as (samples, channels, space):

- Planes, (N, C, *spatial) contiguous: offset n·C·S + c·S + s. One program has one channel.
- Rows (``ROWS``), channels-last and (N, C): offset p·C + c. One program has a block of channels.

``UNIT`` is the power of two, 16 at most, that divides what lies side by side, S in planes and C in rows, which comes
divided by it: so the compiler knows how far values are aligned, and moves them 16 bytes at a time. ``WIDE`` counts in
64 bits, for tensors of 2³¹ values and more.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["byte_offsets", "channel_block", "extent", "is_valid", "offsets", "positions", "positions_at", "program"]


@triton.jit
def extent(samples, channels, space, UNIT: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr):
    """C, S and M."""
    INTEGER: tl.constexpr = tl.int64 if WIDE else tl.int32
    samples = tl.cast(samples, INTEGER)  # not .to(): what is 1 comes as a constant, which has no such method
    channels = tl.cast(channels, INTEGER)
    space = tl.cast(space, INTEGER)
    if ROWS:
        return channels * UNIT, space, samples * space
    else:
        return channels, space * UNIT, samples * (space * UNIT)


@triton.jit
def program(C, CHANNELS: tl.constexpr, WIDE: tl.constexpr, BEFORE: tl.constexpr = 0):
    """Which block of channels this program has, and the how many-th of those that have it; ``BEFORE`` have none."""
    blocks = tl.cdiv(C, CHANNELS)
    pid = tl.cast(tl.program_id(0), tl.int64 if WIDE else tl.int32) - BEFORE
    return pid % blocks, pid // blocks


@triton.jit
def channel_block(block, C, CHANNELS: tl.constexpr, ROWS: tl.constexpr):
    """The channels of a program, and which of them there are."""
    if ROWS:
        c = block * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    else:
        c = block
    return c, c < C


@triton.jit
def positions(begin, BLOCK: tl.constexpr, STRIDE: tl.constexpr, ROWS: tl.constexpr):
    """``BLOCK`` positions from ``begin`` on, each ``STRIDE`` after the one before."""
    if ROWS:
        return begin + tl.arange(0, BLOCK)[:, None] * STRIDE
    else:
        return begin + tl.arange(0, BLOCK) * STRIDE


@triton.jit
def positions_at(begin, place: tl.constexpr, BLOCK: tl.constexpr, PLACES: tl.constexpr, ROWS: tl.constexpr):
    """Where all lanes of a tile are at one of their places: in rows a lane's follow one another, a byte of bits."""
    if ROWS:
        return positions(begin + place, BLOCK, PLACES, ROWS)
    else:
        return positions(begin + place * BLOCK, BLOCK, 1, ROWS)


@triton.jit
def sample_of(p, S, magic, shift, UNIT: tl.constexpr, WIDE: tl.constexpr):
    """⌊p / S⌋; below 2³¹ by a multiplication (``layout.divisor``), since a division is some twenty instructions.

    ``UNIT`` divides S, and p first, in view of the compiler: so it sees that runs of ``UNIT`` positions lie in one
    sample, side by side. What it is told (``tl.max_contiguous``) AMD's loses where it takes sums apart.
    """
    if WIDE:
        return p // UNIT // (S // UNIT)
    else:
        run = p.to(tl.uint32) // UNIT
        # The upper half of the product; of tl.umulhi the compiler does not know that it is the same for a run.
        high = (run.to(tl.uint64) * magic.to(tl.uint32, bitcast=True).to(tl.uint64)) >> 32
        return ((high.to(tl.uint32) + run) >> shift.to(tl.uint32)).to(tl.int32)


@triton.jit
def offsets(p, c, C, S, magic, shift, UNIT: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr):
    """Of each position and channel."""
    if ROWS:
        return p * C + c
    else:
        return p + sample_of(p, S, magic, shift, UNIT, WIDE) * ((C - 1) * S) + c * S


@triton.jit
def is_valid(mask, p, there, x, UNIT: tl.constexpr, ROWS: tl.constexpr):
    """Of positions that are ``there``, what the mask says.

    A thread is to have as many of its bytes side by side as it has values of ``x``, and not the 16 that it could: the
    compiler would move values between threads, through shared memory.
    """
    if ROWS:
        at = tl.max_contiguous(mask + p, (1, 1))
    else:
        TOGETHER: tl.constexpr = 128 // x.dtype.element_ty.primitive_bitwidth
        at = tl.max_contiguous(mask + p, UNIT if UNIT < TOGETHER else TOGETHER)
    return tl.load(at, mask=there, other=0) != 0


@triton.jit
def byte_offsets(group, c, C, M, x, ROWS: tl.constexpr):
    """Of the bytes, each with the bits of eight positions: in planes a channel's lie together, in rows a group's.

    In rows a thread is to have as many side by side as it has values of ``x``, as in :func:`is_valid`.
    """
    if ROWS:
        TOGETHER: tl.constexpr = 128 // x.dtype.element_ty.primitive_bitwidth
        return tl.max_contiguous(group * C + c, (1, TOGETHER))
    else:
        return c * tl.cdiv(M, 8) + group
