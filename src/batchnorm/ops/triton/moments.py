"""Mean and variance of every channel, in two launches: of each slice of a channel, then of the slices together.

Slices depend on the shape alone, and are merged by Chan's formula in one order: the same bits every time, without
atomics.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from .addresses import channel_block, extent, is_valid, offsets, positions, positions_at, program
from .elements import number_of, total

__all__ = ["finish_moments", "partial_moments"]


@triton.jit
def mean_of_block(
    x,
    begin,
    end,
    c,
    within,
    C,
    S,
    magic,
    shift,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    WIDE: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The mean of ``BLOCK`` positions, or of those before the end."""
    p = positions(begin, BLOCK, 1, ROWS)
    at = offsets(p, c, C, S, magic, shift, UNIT, ROWS, WIDE)
    share = 1.0 / tl.maximum(tl.minimum(end - begin, BLOCK), 1).to(ACC)
    # Shares, since a sum of what is large overflows.
    return total(tl.load(x + at, mask=(p < end) & within, other=0.0).to(ACC) * share, ROWS)


@triton.jit
def reference_of(
    x,
    mask,
    begin,
    end,
    c,
    within,
    C,
    S,
    magic,
    shift,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    WIDE: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """A slice's mean, nearly: the median of those of three blocks; with a mask that of all that is valid.

    An outlier moves one of the three. Of a mask's blocks each may have few valid values, or none.
    """
    if mask is not None:
        if ROWS:
            sum = tl.zeros((BLOCK, CHANNELS), ACC)
            count = tl.zeros((BLOCK, 1), tl.int32)
        else:
            sum = tl.zeros((BLOCK,), ACC)
            count = tl.zeros((BLOCK,), tl.int32)
        while begin < end:
            p = positions(begin, BLOCK, 1, ROWS)
            valid = is_valid(mask, p, p < end, x, UNIT, ROWS)
            at = offsets(p, c, C, S, magic, shift, UNIT, ROWS, WIDE)
            sum += tl.load(x + at, mask=valid & within, other=0.0).to(ACC)
            count += valid.to(tl.int32)
            begin += BLOCK
        middle = total(sum, ROWS) / tl.maximum(number_of(count, ROWS), 1).to(ACC)
    else:
        blocks = (end - begin) // BLOCK
        first = mean_of_block(x, begin, end, c, within, C, S, magic, shift, UNIT, ROWS, WIDE, ACC, BLOCK)
        half = begin + blocks // 2 * BLOCK
        second = mean_of_block(x, half, end, c, within, C, S, magic, shift, UNIT, ROWS, WIDE, ACC, BLOCK)
        last = begin + tl.maximum(blocks - 1, 0) * BLOCK
        third = mean_of_block(x, last, end, c, within, C, S, magic, shift, UNIT, ROWS, WIDE, ACC, BLOCK)
        middle = tl.maximum(tl.minimum(first, second), tl.minimum(tl.maximum(first, second), third))
    # Neither infinities nor what would overflow in a difference.
    LIMIT: tl.constexpr = 1e300 if tl.float64 == ACC else 1e38
    return tl.where(tl.abs(middle) < LIMIT, middle, 0.0)


@triton.jit(do_not_specialize=["samples", "channels", "space", "magic", "shift", "steps"])
def partial_moments(
    x,
    mask,
    counts,
    references,
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
    PLACES: tl.constexpr,
):
    """Moments of a slice of ``steps·BLOCK·PLACES`` positions, from the sums of distances and of their squares.

    The distances are those from the slice's reference (:func:`reference_of`), which is near its mean: little cancels in
    Σd² − (Σd)²/n. Each block that it is taken from is part of the slice, whose variance is no less than what the
    block's share of it makes of the distance between the two means: so what cancels is bounded by how many blocks a
    slice has, whatever the values. Welford's update in every lane would not cancel at all, at twice the instructions a
    value and many times as many a lane.

    All are (slices, C): ``counts`` (with a mask), ``references``, ``means`` less these, and ``squares``, the sum of
    squared distances from the mean. ``GUARD`` says that there are slices that are not whole.
    """
    C, S, M = extent(samples, channels, space, UNIT, ROWS, WIDE)
    block, part = program(C, CHANNELS, WIDE)
    c, within = channel_block(block, C, CHANNELS, ROWS)
    begin = part * steps * (BLOCK * PLACES)
    end = tl.minimum(begin + steps * (BLOCK * PLACES), M)
    reference = reference_of(x, mask, begin, end, c, within, C, S, magic, shift, UNIT, ROWS, WIDE, ACC, BLOCK, CHANNELS)
    if ROWS:
        sum = tl.zeros((BLOCK, CHANNELS), ACC)
        square = tl.zeros((BLOCK, CHANNELS), ACC)
        count = tl.zeros((BLOCK, 1), tl.int32)
    else:
        sum = tl.zeros((BLOCK,), ACC)
        square = tl.zeros((BLOCK,), ACC)
        count = tl.zeros((BLOCK,), tl.int32)
    for step in range(steps):
        for place in tl.static_range(PLACES):
            p = positions_at(begin + step * (BLOCK * PLACES), place, BLOCK, PLACES, ROWS)
            there = p < M
            at = offsets(p, c, C, S, magic, shift, UNIT, ROWS, WIDE)
            distance = tl.load(x + at, mask=there & within, other=0.0).to(ACC) - reference
            if mask is not None:
                there = is_valid(mask, p, there, x, UNIT, ROWS)
                count += there.to(tl.int32)
            if GUARD:
                distance = tl.where(there, distance, 0.0)
            sum += distance
            square = tl.fma(distance, distance, square)
    n = number_of(count, ROWS) if mask is not None else end - begin
    of_slice = total(sum, ROWS)
    mean = of_slice / tl.maximum(n, 1).to(ACC)
    squared = total(square, ROWS)
    # Where the squares alone overflow, so does the variance; from a difference of infinities it would be NaN.
    overflows = (squared == float("inf")) & (tl.abs(of_slice) < float("inf"))
    rest = squared - tl.where(overflows, 0.0, of_slice * mean)
    at = part * C + c
    tl.store(references + at, reference, mask=within)
    tl.store(means + at, mean, mask=within)
    tl.store(squares + at, tl.where(rest < 0.0, 0.0, rest), mask=within)
    if mask is not None:
        tl.store(counts + at, tl.where(within, n, 0).to(ACC), mask=within)


@triton.jit(do_not_specialize=["samples", "channels", "space", "magic", "shift", "slices", "size"])
def finish_moments(
    counts,
    references,
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
    C, _, M = extent(samples, channels, space, UNIT, ROWS, WIDE)
    c, within = channel_block(tl.program_id(0), C, CHANNELS, True)
    every = tl.zeros((1, CHANNELS), ACC)
    middle = tl.zeros((1, CHANNELS), ACC)
    squares_of_all = tl.zeros((1, CHANNELS), ACC)
    origin = tl.zeros((1, CHANNELS), ACC)
    counted = tl.zeros((), tl.int64)
    for begin in range(0, slices, SLICES):
        part = tl.cast(begin + tl.arange(0, SLICES)[:, None], M.dtype)
        there = (part < slices) & within
        at = part * C + c
        if counts is not None:
            n = tl.load(counts + at, mask=there, other=0.0)
            some = begin + tl.arange(0, SLICES)
            counted += tl.sum(tl.load(counts + some * C, mask=some < slices, other=0.0).to(tl.int64), 0)
        else:
            n = tl.where(there, tl.minimum(tl.maximum(M - part * size, 0), size), 0).to(ACC)
        square = tl.load(squares + at, mask=there, other=0.0)
        reference = tl.load(references + at, mask=there, other=0.0)
        if begin == 0:
            # Means count from one of the references: beside a large one a small spread would be lost in sums.
            largest = tl.max(tl.where(n > 0.0, reference, float("-inf")), 0, keep_dims=True)
            origin = tl.where(largest > float("-inf"), largest, 0.0)
        mean = tl.where(n > 0.0, (reference - origin) + tl.load(means + at, mask=there, other=0.0), 0.0)
        here = tl.sum(n, 0, keep_dims=True)
        share = n / tl.maximum(here, 1.0)
        of_these = tl.sum(mean * share, 0, keep_dims=True)
        # Twice: means that are large and near each other lose in a sum what their distances still hold.
        distance = tl.where(n > 0.0, mean - of_these, 0.0)
        correction = tl.sum(distance * share, 0, keep_dims=True)
        of_these += tl.where(tl.abs(correction) < float("inf"), correction, 0.0)  # an infinite mean stays so
        distance = tl.where(n > 0.0, mean - of_these, 0.0)
        # These and all before them, by Chan's formula.
        part_of_all = here / tl.maximum(every + here, 1.0)
        delta = tl.where(here > 0.0, of_these - middle, 0.0)
        squares_of_all += tl.sum(square + n * distance * distance, 0, keep_dims=True)
        squares_of_all += tl.where(every > 0.0, delta * delta * every * part_of_all, 0.0)
        middle += delta * part_of_all
        every += here
    OUT: tl.constexpr = mean_out.dtype.element_ty
    whole = origin.to(OUT) + middle.to(OUT)
    tl.store(mean_out + c, tl.where(every > 0.0, whole, 0.0), mask=within)
    tl.store(var_out + c, (squares_of_all / tl.maximum(every, 1.0)).to(OUT), mask=within)
    if tl.program_id(0) == 0:
        if counts is not None:
            tl.store(count_out, counted)
        else:
            tl.store(count_out, M.to(tl.int64))
