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
):
    """The mean of the first ``BLOCK`` positions of a slice, or of the first so many among which are valid ones."""
    p = positions(begin, BLOCK, 1, ROWS)
    if mask is not None:
        valid = is_valid(mask, p, p < end, x, UNIT, ROWS)
        n = number_of(valid, ROWS)
        while (n == 0) & (begin < end):
            begin += BLOCK
            p = positions(begin, BLOCK, 1, ROWS)
            valid = is_valid(mask, p, p < end, x, UNIT, ROWS)
            n = number_of(valid, ROWS)
    else:
        valid = p < end
        n = tl.minimum(end - begin, BLOCK)
    at = offsets(p, c, C, S, magic, shift, UNIT, ROWS, WIDE)
    middle = total(tl.load(x + at, mask=valid & within, other=0.0).to(ACC), ROWS) / tl.maximum(n, 1).to(ACC)
    # Neither infinities nor what would overflow in a difference.
    return tl.where(tl.abs(middle) < 1e30, middle, 0.0)


@triton.jit(do_not_specialize=["magic", "shift"])
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

    The distances are those from the mean of the slice's first ``BLOCK`` values, its reference. These are part of the
    slice, so its variance is no less than what their share of it makes of the distance between the two means: what
    cancels in Σd² − (Σd)²/n is bounded by how many times as long the slice is, whatever the values. Welford's update
    in every lane would not cancel at all, at twice the instructions a value and many times as many a lane.

    All are (slices, C): ``counts`` (with a mask), ``references``, ``means`` less these, and ``squares``, the sum of
    squared distances from the mean. ``GUARD`` says that there are slices that are not whole.
    """
    C, S, M = extent(samples, channels, space, UNIT, ROWS, WIDE)
    block, part = program(C, CHANNELS, WIDE)
    c, within = channel_block(block, C, CHANNELS, ROWS)
    begin = part * steps * (BLOCK * PLACES)
    end = tl.minimum(begin + steps * (BLOCK * PLACES), M)
    reference = reference_of(x, mask, begin, end, c, within, C, S, magic, shift, UNIT, ROWS, WIDE, ACC, BLOCK)
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


@triton.jit(do_not_specialize=["magic", "shift"])
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
    part = tl.cast(tl.arange(0, SLICES)[:, None], M.dtype)
    there = (part < slices) & within
    at = part * C + c
    if counts is not None:
        n = tl.load(counts + at, mask=there, other=0.0)
    else:
        n = tl.where(there, tl.minimum(tl.maximum(M - part * size, 0), size), 0).to(ACC)
    square = tl.load(squares + at, mask=there, other=0.0)
    reference = tl.load(references + at, mask=there, other=0.0)
    # Means count from one of the references: beside a large one a small spread would be lost in the roundings of sums.
    origin = tl.max(tl.where(n > 0.0, reference, float("-inf")), 0, keep_dims=True)
    origin = tl.where(origin > float("-inf"), origin, 0.0)
    mean = tl.where(n > 0.0, (reference - origin) + tl.load(means + at, mask=there, other=0.0), 0.0)
    every = tl.sum(n, 0, keep_dims=True)
    share = n / tl.maximum(every, 1.0)
    middle = tl.sum(mean * share, 0, keep_dims=True)
    # Twice: means that are large and near each other lose in a sum what their distances still hold.
    distance = tl.where(n > 0.0, mean - middle, 0.0)
    correction = tl.sum(distance * share, 0, keep_dims=True)
    middle += tl.where(tl.abs(correction) < float("inf"), correction, 0.0)  # an infinite mean stays so
    distance = tl.where(n > 0.0, mean - middle, 0.0)
    var = tl.sum(square + n * distance * distance, 0, keep_dims=True) / tl.maximum(every, 1.0)
    OUT: tl.constexpr = mean_out.dtype.element_ty
    whole = origin.to(OUT) + middle.to(OUT)
    tl.store(mean_out + c, tl.where(every > 0.0, whole, 0.0), mask=within)
    tl.store(var_out + c, var.to(OUT), mask=within)
    if tl.program_id(0) == 0:
        if counts is not None:
            first = tl.load(counts + tl.arange(0, SLICES) * C, mask=tl.arange(0, SLICES) < slices, other=0.0)
            tl.store(count_out, tl.sum(first.to(tl.int64), 0))
        else:
            tl.store(count_out, M.to(tl.int64))
