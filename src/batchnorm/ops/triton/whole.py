"""Forward and backward pass in one launch each, where all positions of a block of channels stay on the chip."""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from .addresses import byte_offsets, channel_block, extent, is_valid, offsets, positions
from .elements import activated, coefficients, inverse_std, is_on, number_of, packed, preactivation, total, unpacked
from .gradients import gradient_of_preactivation, through_statistics

__all__ = ["whole_backward", "whole_forward"]


@triton.jit(do_not_specialize=["samples", "channels", "space", "magic", "shift"])
def whole_forward(
    x,
    residual,
    mask,
    weight,
    bias,
    output,
    bits,
    count_out,
    mean_out,
    var_out,
    samples,
    channels,
    space,
    magic,
    shift,
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
):
    """``BLOCK`` is no less than the positions. Without ``output`` these are the moments alone."""
    C, S, M = extent(samples, channels, space, UNIT, ROWS, WIDE)
    c, within = channel_block(tl.program_id(0), C, CHANNELS, ROWS)
    p = positions(0, BLOCK, 1, ROWS)
    there = p < M
    at = offsets(p, c, C, S, magic, shift, UNIT, ROWS, WIDE)
    value = tl.load(x + at, mask=there & within, other=0.0).to(ACC)
    valid = there
    if mask is not None:
        valid = is_valid(mask, p, there, x, UNIT, ROWS)
        n = number_of(valid, ROWS)
    else:
        n = M
    values = tl.maximum(n, 1).to(ACC)
    share = 1.0 / values
    near = total(tl.where(valid, value, 0.0) * share, ROWS)  # of shares: a sum of what is large overflows
    distance = tl.where(valid, value - near, 0.0)
    # The mean's own rounding, found on the distances from it, is taken out of both.
    correction = total(distance, ROWS) / values
    correction = tl.where(tl.abs(correction) < float("inf"), correction, 0.0)  # an infinite mean stays so
    distance = tl.where(valid, distance - correction, 0.0)
    var = total(distance * distance, ROWS) / values
    OUT: tl.constexpr = mean_out.dtype.element_ty
    mean = near.to(OUT) + correction.to(OUT)
    tl.store(mean_out + c, mean, mask=within)
    tl.store(var_out + c, var.to(OUT), mask=within)
    if tl.program_id(0) == 0:
        tl.store(count_out, n.to(tl.int64))
    if output is not None:
        scale = inverse_std(var, EPS)
        if weight is not None:
            scale *= tl.load(weight + c, mask=within, other=0.0).to(ACC)
        if bias is not None:
            move_by = tl.load(bias + c, mask=within, other=0.0).to(ACC)
        else:
            move_by = tl.where(within, 0.0, 0.0).to(ACC)
        z = preactivation(value, mean, scale, move_by)
        if residual is not None:
            z += tl.load(residual + at, mask=there & within, other=0.0).to(ACC)
        if bits is not None:
            group = positions(0, BLOCK // 8, 1, ROWS)
            some = packed(is_on(z, ACT, P0, P1), BLOCK, CHANNELS, ROWS)
            tl.store(bits + byte_offsets(group, c, C, M, x, ROWS), some, mask=(group * 8 < M) & within)
        y = activated(z, ACT, P0, P1)
        if mask is not None:
            y = tl.where(valid, y, 0.0)
        tl.store(output + at, y.to(output.dtype.element_ty), mask=there & within)


@triton.jit(do_not_specialize=["samples", "channels", "space", "magic", "shift"])
def whole_backward(
    dy,
    x,
    residual,
    mask,
    mean,
    var,
    weight,
    bias,
    bits,
    count,
    dx,
    dresidual,
    sum_dz_out,
    sum_dz_standardized_out,
    samples,
    channels,
    space,
    magic,
    shift,
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
):
    """All gradients of a block of channels; without ``count`` those of evaluation, where statistics are constants."""
    C, S, M = extent(samples, channels, space, UNIT, ROWS, WIDE)
    c, within = channel_block(tl.program_id(0), C, CHANNELS, ROWS)
    m, invstd, scale, move_by = coefficients(mean, var, weight, bias, c, within, EPS, ACC)
    p = positions(0, BLOCK, 1, ROWS)
    there = p < M
    at = offsets(p, c, C, S, magic, shift, UNIT, ROWS, WIDE)
    centred = tl.load(x + at, mask=there & within, other=0.0).to(ACC) - m
    gradient = tl.load(dy + at, mask=there & within, other=0.0).to(ACC)
    added = None
    if residual is not None:
        added = tl.load(residual + at, mask=there & within, other=0.0).to(ACC)
    on = None
    if bits is not None:
        group = positions(0, BLOCK // 8, 1, ROWS)
        bytes = tl.load(bits + byte_offsets(group, c, C, M, x, ROWS), mask=(group * 8 < M) & within, other=0)
        on = unpacked(bytes, BLOCK, CHANNELS, ROWS)
    dz = gradient_of_preactivation(gradient, centred, added, on, scale, move_by, ACT, P0, P1)
    standardized = centred * invstd
    valid = there
    if mask is not None:
        valid = is_valid(mask, p, there, x, UNIT, ROWS)
    # Beyond the end x is 0, and what is made of it by extreme statistics may be NaN.
    dz = tl.where(valid, dz, 0.0)
    standardized = tl.where(valid, standardized, 0.0)
    if dresidual is not None:
        tl.store(dresidual + at, dz.to(dresidual.dtype.element_ty), mask=there & within)
    first = total(dz, ROWS)
    second = total(dz * standardized, ROWS)
    tl.store(sum_dz_out + c, first, mask=within)
    tl.store(sum_dz_standardized_out + c, second, mask=within)
    if dx is not None:
        if count is not None:
            by_dz, by_centred, constant = through_statistics(tl.load(count), first, second, invstd, scale)
            found = tl.fma(dz, by_dz, tl.fma(centred, by_centred, constant))
            if mask is not None:
                found = tl.where(valid, found, 0.0)
        else:
            found = dz * scale
        tl.store(dx + at, found.to(dx.dtype.element_ty), mask=there & within)
