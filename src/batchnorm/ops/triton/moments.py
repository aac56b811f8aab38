"""Mean and variance of every channel, in two launches: of each slice of a channel, then of the slices together.

Slices depend on the shape alone, and are merged in one order: the same bits every time, without atomics.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from .addresses import channel_block, extent, offsets, positions, program
from .elements import total

__all__ = ["finish_moments", "partial_moments"]


@triton.jit
def valid_value(x, mask, p, c, within, C, S, magic, shift, ROWS: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr):
    value = tl.load(x + offsets(p, c, C, S, magic, shift, 1, ROWS, WIDE), mask=within, other=0.0).to(ACC)
    if mask is not None:
        value = tl.where(tl.load(mask + p) != 0, value, 0.0)
    return value


@triton.jit
def origin_of(x, mask, c, within, C, S, M, magic, shift, ROWS: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr):
    """What is subtracted before anything is summed: the median of three values, so that no outlier is it.

    Beside a large mean a small spread would be lost in the roundings of sums. Padding counts as 0.
    """
    first = valid_value(x, mask, M * 0, c, within, C, S, magic, shift, ROWS, WIDE, ACC)
    second = valid_value(x, mask, M // 2, c, within, C, S, magic, shift, ROWS, WIDE, ACC)
    third = valid_value(x, mask, M - 1, c, within, C, S, magic, shift, ROWS, WIDE, ACC)
    middle = tl.maximum(tl.minimum(first, second), tl.minimum(tl.maximum(first, second), third))
    # Neither infinities nor what would overflow in a difference.
    return tl.where(tl.abs(middle) < 1e30, middle, 0.0)


@triton.jit(do_not_specialize=["magic", "shift"])
def partial_moments(
    x,
    mask,
    counts,
    means,
    squares,
    samples,
    channels,
    space,
    magic,
    shift,
    steps,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    WIDE: tl.constexpr,
    GUARD: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Welford's update in every lane of a tile that walks over a slice, then the lanes merged by Chan's formula.

    ``counts`` (with a mask), ``means`` and ``squares``, (slices, C): how many values, their mean less the origin, and
    the sum of their squared distances from it. ``GUARD`` says that there are slices that are not whole.
    """
    C, S, M = extent(samples, channels, space, UNIT, ROWS, WIDE)
    block, part = program(C, CHANNELS, WIDE)
    c, within = channel_block(block, C, CHANNELS, ROWS)
    origin = origin_of(x, mask, c, within, C, S, M, magic, shift, ROWS, WIDE, ACC)
    begin = part * steps * BLOCK
    if ROWS:
        mean = tl.zeros((BLOCK, CHANNELS), ACC)
        square = tl.zeros((BLOCK, CHANNELS), ACC)
        count = tl.zeros((BLOCK, 1), ACC)
    else:
        mean = tl.zeros((BLOCK,), ACC)
        square = tl.zeros((BLOCK,), ACC)
        count = tl.zeros((BLOCK,), ACC)
    for step in range(steps):
        p = positions(begin + step * BLOCK, BLOCK, 1, ROWS)
        there = p < M
        at = offsets(p, c, C, S, magic, shift, UNIT, ROWS, WIDE)
        value = tl.load(x + at, mask=there & within, other=0.0).to(ACC) - origin
        if mask is not None:
            there = tl.load(mask + p, mask=there, other=0) != 0
            value = tl.where(there, value, 0.0)
            count += there.to(ACC)
            share = 1.0 / tl.maximum(count, 1.0)
        else:
            share = 1.0 / tl.cast(step + 1, ACC)
        delta = value - mean
        if GUARD:
            delta = tl.where(there, delta, 0.0)
        mean += delta * share
        square += delta * (value - mean)
    if mask is None:
        # A lane's values end where the batch does, somewhere in the slice.
        left = M - positions(begin, BLOCK, 1, ROWS)
        count = tl.minimum(tl.maximum(tl.cdiv(left, BLOCK), 0), steps).to(ACC)
    n = total(count, ROWS)
    share = count / tl.maximum(n, 1.0)
    of_slice = total(mean * share, ROWS)
    distance = tl.where(count > 0.0, mean - of_slice, 0.0)
    at = part * C + c
    tl.store(means + at, of_slice, mask=within)
    tl.store(squares + at, total(square + count * distance * distance, ROWS), mask=within)
    if mask is not None:
        tl.store(counts + at, n, mask=within)


@triton.jit(do_not_specialize=["magic", "shift"])
def finish_moments(
    x,
    mask,
    counts,
    means,
    squares,
    count_out,
    mean_out,
    var_out,
    samples,
    channels,
    space,
    magic,
    shift,
    slices,
    size,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    WIDE: tl.constexpr,
    ACC: tl.constexpr,
    SLICES: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """All slices of a block of channels, each of ``size`` positions: ``count`` () int64, ``mean`` and ``var`` (C,)."""
    C, S, M = extent(samples, channels, space, UNIT, ROWS, WIDE)
    c, within = channel_block(tl.program_id(0), C, CHANNELS, True)
    part = tl.cast(tl.arange(0, SLICES)[:, None], M.dtype)
    there = (part < slices) & within
    at = part * C + c
    if mask is not None:
        n = tl.load(counts + at, mask=there, other=0.0)
    else:
        n = tl.where(there, tl.minimum(tl.maximum(M - part * size, 0), size), 0).to(ACC)
    mean = tl.load(means + at, mask=there, other=0.0)
    square = tl.load(squares + at, mask=there, other=0.0)
    every = tl.sum(n, 0, keep_dims=True)
    share = n / tl.maximum(every, 1.0)
    middle = tl.sum(mean * share, 0, keep_dims=True)
    # Twice: means that are large and near each other lose in a sum what their distances still hold.
    distance = tl.where(n > 0.0, mean - middle, 0.0)
    correction = tl.sum(distance * share, 0, keep_dims=True)
    middle += correction
    distance = tl.where(n > 0.0, mean - middle, 0.0)
    var = tl.sum(square + n * distance * distance, 0, keep_dims=True) / tl.maximum(every, 1.0)
    origin = origin_of(x, mask, c, within, C, S, M, magic, shift, ROWS, WIDE, ACC)
    OUT: tl.constexpr = mean_out.dtype.element_ty
    whole = origin.to(OUT) + middle.to(OUT)
    tl.store(mean_out + c, tl.where(every > 0.0, whole, 0.0), mask=within)
    tl.store(var_out + c, var.to(OUT), mask=within)
    if tl.program_id(0) == 0:
        if mask is not None:
            first = tl.load(counts + tl.arange(0, SLICES) * C, mask=tl.arange(0, SLICES) < slices, other=0.0)
            tl.store(count_out, tl.sum(first.to(tl.int64), 0))
        else:
            tl.store(count_out, M.to(tl.int64))
