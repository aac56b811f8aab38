"""The gradients: the two sums of every channel, of slices and then of all, and the input's gradient from them."""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from .addresses import byte_offsets, channel_block, extent, is_valid, offsets, positions, positions_at, program
from .elements import coefficients, derivative, is_on, passed, total, unpacked

__all__ = ["finish_sums", "gradient_of_preactivation", "input_gradient", "partial_sums", "through_statistics"]


@triton.jit
def gradient_of_preactivation(
    dy, centred, residual, on, scale, move_by, ACT: tl.constexpr, P0: tl.constexpr, P1: tl.constexpr
):
    """The gradient dz of a tile; ``on`` is what the bits say, None where z has to be computed again."""
    if ACT == "identity":
        return dy
    elif on is not None:
        return passed(dy, on, ACT, P0)
    else:
        z = tl.fma(centred, scale, move_by)
        if residual is not None:
            z += residual
        if ACT == "relu" or ACT == "leaky_relu" or ACT == "relu6" or ACT == "hardtanh":
            return passed(dy, is_on(z, ACT, P0, P1), ACT, P0)
        else:
            return dy * derivative(z, ACT, P0)


@triton.jit
def through_statistics(count, sum_dz, sum_dz_standardized, invstd, scale):
    """The numbers with which ``dx = dz·a + (x − mean)·b + c`` in training (§3, the chain rule, collapsed)."""
    values = tl.maximum(count, 1).to(scale.dtype)
    return scale, -scale * invstd * (sum_dz_standardized / values), -scale * (sum_dz / values)


@triton.jit(do_not_specialize=["samples", "channels", "space", "magic", "shift", "steps"])
def partial_sums(
    dy,
    x,
    residual,
    mask,
    mean,
    var,
    weight,
    bias,
    bits,
    sums_dz,
    sums_dz_standardized,
    samples,
    channels,
    space,
    magic,
    shift,
    steps,
    EPS: tl.constexpr,
    ACT: tl.constexpr,
    P0: tl.constexpr,
    P1: tl.constexpr,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    WIDE: tl.constexpr,
    GUARD: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
    CHANNELS: tl.constexpr,
    PLACES: tl.constexpr,
):
    """Σdz and Σdz·x̂ of a slice of ``steps·BLOCK·PLACES`` positions, (slices, C); slices as in ``partial_moments``."""
    C, S, M = extent(samples, channels, space, UNIT, ROWS, WIDE)
    block, part = program(C, CHANNELS, WIDE)
    c, within = channel_block(block, C, CHANNELS, ROWS)
    m, invstd, scale, move_by = coefficients(mean, var, weight, bias, c, within, EPS, ACC)
    if ROWS:
        sum_dz = tl.zeros((BLOCK, CHANNELS), ACC)
        sum_dz_standardized = tl.zeros((BLOCK, CHANNELS), ACC)
    else:
        sum_dz = tl.zeros((BLOCK,), ACC)
        sum_dz_standardized = tl.zeros((BLOCK,), ACC)
    for step in range(steps):
        begin = (part * steps + step) * (BLOCK * PLACES)
        if bits is not None and ROWS:
            group = positions(begin // 8, BLOCK, 1, ROWS)
            byte_at = byte_offsets(group, c, C, M, x, ROWS)
            bytes = tl.load(bits + byte_at, mask=(group * 8 < M) & within, other=0)
        for place in tl.static_range(PLACES):
            p = positions_at(begin, place, BLOCK, PLACES, ROWS)
            there = p < M
            at = offsets(p, c, C, S, magic, shift, UNIT, ROWS, WIDE)
            centred = tl.load(x + at, mask=there & within, other=0.0).to(ACC) - m
            gradient = tl.load(dy + at, mask=there & within, other=0.0).to(ACC)
            added = None
            if residual is not None:
                added = tl.load(residual + at, mask=there & within, other=0.0).to(ACC)
            on = None
            if bits is not None:
                if ROWS:
                    on = ((bytes.to(tl.int32) >> place) & 1) != 0
                else:
                    group = positions((begin + place * BLOCK) // 8, BLOCK // 8, 1, ROWS)
                    byte_at = byte_offsets(group, c, C, M, x, ROWS)
                    bytes = tl.load(bits + byte_at, mask=(group * 8 < M) & within, other=0)
                    on = unpacked(bytes, BLOCK, CHANNELS, ROWS)
            dz = gradient_of_preactivation(gradient, centred, added, on, scale, move_by, ACT, P0, P1)
            standardized = centred * invstd
            if mask is not None:
                there = is_valid(mask, p, there, x, UNIT, ROWS)
            if GUARD:
                # Beyond the end x is 0, and what is made of it by extreme statistics may be NaN.
                dz = tl.where(there, dz, 0.0)
                standardized = tl.where(there, standardized, 0.0)
            sum_dz += dz
            sum_dz_standardized += dz * standardized
    at = part * C + c
    tl.store(sums_dz + at, total(sum_dz, ROWS), mask=within)
    tl.store(sums_dz_standardized + at, total(sum_dz_standardized, ROWS), mask=within)


@triton.jit(do_not_specialize=["channels", "slices"])
def finish_sums(
    parts_dz,
    parts_dz_standardized,
    sum_dz,
    sum_dz_standardized,
    channels,
    slices,
    SLICES: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """The sums over all slices of a block of channels."""
    c, within = channel_block(tl.program_id(0), channels, CHANNELS, True)
    dz = tl.zeros((1, CHANNELS), sum_dz.dtype.element_ty)
    dz_standardized = tl.zeros((1, CHANNELS), sum_dz.dtype.element_ty)
    for begin in range(0, slices, SLICES):
        part = begin + tl.arange(0, SLICES)[:, None]
        at = part * channels + c
        there = (part < slices) & within
        dz += tl.sum(tl.load(parts_dz + at, mask=there, other=0.0), 0, keep_dims=True)
        dz_standardized += tl.sum(tl.load(parts_dz_standardized + at, mask=there, other=0.0), 0, keep_dims=True)
    tl.store(sum_dz + c, dz, mask=within)
    tl.store(sum_dz_standardized + c, dz_standardized, mask=within)


@triton.jit(do_not_specialize=["samples", "channels", "space", "magic", "shift"])
def input_gradient(
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
    sum_dz,
    sum_dz_standardized,
    dx,
    dresidual,
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
    PLACES: tl.constexpr,
):
    """The gradients of input and residual, each where it is asked for; without sums, those of evaluation."""
    C, S, M = extent(samples, channels, space, UNIT, ROWS, WIDE)
    block, tile = program(C, CHANNELS, WIDE)
    c, within = channel_block(block, C, CHANNELS, ROWS)
    m, invstd, scale, move_by = coefficients(mean, var, weight, bias, c, within, EPS, ACC)
    if sum_dz is not None:
        first = tl.load(sum_dz + c, mask=within, other=0.0).to(ACC)
        second = tl.load(sum_dz_standardized + c, mask=within, other=0.0).to(ACC)
        by_dz, by_centred, constant = through_statistics(tl.load(count), first, second, invstd, scale)
    begin = tile * (BLOCK * PLACES)
    if bits is not None and ROWS:
        group = positions(begin // 8, BLOCK, 1, ROWS)
        byte_at = byte_offsets(group, c, C, M, x, ROWS)
        bytes = tl.load(bits + byte_at, mask=(group * 8 < M) & within, other=0)
    for place in tl.static_range(PLACES):
        p = positions_at(begin, place, BLOCK, PLACES, ROWS)
        there = p < M
        at = offsets(p, c, C, S, magic, shift, UNIT, ROWS, WIDE)
        centred = tl.load(x + at, mask=there & within, other=0.0).to(ACC) - m
        gradient = tl.load(dy + at, mask=there & within, other=0.0).to(ACC)
        added = None
        if residual is not None:
            added = tl.load(residual + at, mask=there & within, other=0.0).to(ACC)
        on = None
        if bits is not None:
            if ROWS:
                on = ((bytes.to(tl.int32) >> place) & 1) != 0
            else:
                group = positions((begin + place * BLOCK) // 8, BLOCK // 8, 1, ROWS)
                byte_at = byte_offsets(group, c, C, M, x, ROWS)
                bytes = tl.load(bits + byte_at, mask=(group * 8 < M) & within, other=0)
                on = unpacked(bytes, BLOCK, CHANNELS, ROWS)
        dz = gradient_of_preactivation(gradient, centred, added, on, scale, move_by, ACT, P0, P1)
        if mask is not None:
            valid = is_valid(mask, p, there, x, UNIT, ROWS)
            dz = tl.where(valid, dz, 0.0)
        if dresidual is not None:
            tl.store(dresidual + at, dz.to(dresidual.dtype.element_ty), mask=there & within)
        if dx is not None:
            if sum_dz is not None:
                found = tl.fma(dz, by_dz, tl.fma(centred, by_centred, constant))
                if mask is not None:
                    found = tl.where(valid, found, 0.0)
            else:
                found = dz * scale
            tl.store(dx + at, found.to(dx.dtype.element_ty), mask=there & within)
