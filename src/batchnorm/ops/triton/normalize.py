"""``y = activation((x − mean)·scale + shift + residual)``, and the bits of a piecewise linear activation."""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from .addresses import byte_offsets, channel_block, extent, is_valid, offsets, positions, positions_at, program
from .elements import activated, coefficients, is_on, packed, preactivation
from .running import move

__all__ = ["normalize"]


@triton.jit(do_not_specialize=["samples", "channels", "space", "magic", "shift"])
def normalize(
    x,
    residual,
    mask,
    mean,
    var,
    weight,
    bias,
    output,
    bits,
    running_mean,
    running_var,
    num_batches_tracked,
    count,
    momentum,
    momentum_rest,
    samples,
    channels,
    space,
    magic,
    shift,
    CUMULATIVE: tl.constexpr,
    SKIP: tl.constexpr,
    MOVED: tl.constexpr,
    EPS: tl.constexpr,
    ACT: tl.constexpr,
    P0: tl.constexpr,
    P1: tl.constexpr,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    WIDE: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
    CHANNELS: tl.constexpr,
    PLACES: tl.constexpr,
):
    """A program has ``BLOCK·PLACES`` positions of a block of channels; the first moves the running buffers, if any."""
    C, S, M = extent(samples, channels, space, UNIT, ROWS, WIDE)
    if running_mean is not None:
        if tl.program_id(0) == 0:  # it has most to wait for
            move(
                running_mean,
                running_var,
                num_batches_tracked,
                count,
                mean,
                var,
                None,
                momentum,
                momentum_rest,
                C,
                CUMULATIVE,
                SKIP,
                MOVED,
            )
            return
    block, tile = program(C, CHANNELS, WIDE, 0 if running_mean is None else 1)
    c, within = channel_block(block, C, CHANNELS, ROWS)
    m, _, scale, move_by = coefficients(mean, var, weight, bias, c, within, EPS, ACC)
    begin = tile * (BLOCK * PLACES)
    if ROWS:
        byte = tl.zeros((BLOCK, CHANNELS), tl.int32)
    for place in tl.static_range(PLACES):
        p = positions_at(begin, place, BLOCK, PLACES, ROWS)
        there = p < M
        at = offsets(p, c, C, S, magic, shift, UNIT, ROWS, WIDE)
        z = preactivation(tl.load(x + at, mask=there & within, other=0.0).to(ACC), m, scale, move_by)
        if residual is not None:
            z += tl.load(residual + at, mask=there & within, other=0.0).to(ACC)
        if bits is not None:
            if ROWS:
                byte |= is_on(z, ACT, P0, P1).to(tl.int32) << place
            else:
                group = positions((begin + place * BLOCK) // 8, BLOCK // 8, 1, ROWS)
                some = packed(is_on(z, ACT, P0, P1), BLOCK, CHANNELS, ROWS)
                tl.store(bits + byte_offsets(group, c, C, M, x, ROWS), some, mask=(group * 8 < M) & within)
        y = activated(z, ACT, P0, P1)
        if mask is not None:
            y = tl.where(is_valid(mask, p, there, x, UNIT, ROWS), y, 0.0)
        tl.store(output + at, y.to(output.dtype.element_ty), mask=there & within)
    if bits is not None and ROWS:
        group = positions(begin // 8, BLOCK, 1, ROWS)
        tl.store(bits + byte_offsets(group, c, C, M, x, ROWS), byte.to(tl.uint8), mask=(group * 8 < M) & within)
