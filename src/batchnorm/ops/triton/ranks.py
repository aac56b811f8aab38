"""What a rank sends of its moments, and what all have sent merged, in one launch each.

Formulas and order are those of :mod:`batchnorm.ops.ranks`. Every product that is added is a fused multiply-add, spelled
out: ranks whose GPUs are of different kinds compute the same bits.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["merge_parts", "pack_moments"]


@triton.jit(do_not_specialize=["positions", "channels"])
def pack_moments(count, mean, var, part, positions, channels, BLOCK: tl.constexpr):
    """``part``, (2 + 2·C,) float64: ``positions``, the count, the mean, M2; ``mean`` and ``var`` are float64 too."""
    c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    within = c < channels
    values = tl.load(count).to(tl.float64)
    tl.store(part + 2 + c, tl.load(mean + c, mask=within, other=0.0), mask=within)
    tl.store(part + 2 + channels + c, tl.load(var + c, mask=within, other=0.0) * values, mask=within)
    if tl.program_id(0) == 0:
        tl.store(part, tl.cast(positions, tl.float64))
        tl.store(part + 1, values)


@triton.jit
def column(parts, ranks, width):
    """The sum of one number of every rank, which ``parts`` points to for the first one."""
    found = tl.load(parts)
    for rank in range(1, ranks):
        found += tl.load(parts + rank * width)
    return found


@triton.jit(do_not_specialize=["ranks", "channels"])
def merge_parts(parts, empty_out, count_out, mean_out, var_out, ranks, channels, BLOCK: tl.constexpr):
    """All ranks' ``parts``, (R, 2 + 2·C), as what :func:`batchnorm.ops.ranks.merge_parts` returns."""
    width = 2 + 2 * channels
    c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    within = c < channels
    count = column(parts + 1, ranks, width)
    values = tl.maximum(count, 1.0)
    mean = tl.zeros((BLOCK,), tl.float64)
    for rank in range(ranks):
        share = tl.load(parts + rank * width + 1) / values
        mean = tl.fma(tl.load(parts + rank * width + 2 + c, mask=within, other=0.0), share, mean)
    correction = tl.zeros((BLOCK,), tl.float64)
    for rank in range(ranks):
        share = tl.load(parts + rank * width + 1) / values
        distance = tl.load(parts + rank * width + 2 + c, mask=within, other=0.0) - mean
        correction = tl.fma(distance, share, correction)
    mean += correction
    squares = tl.zeros((BLOCK,), tl.float64)
    between = tl.zeros((BLOCK,), tl.float64)
    for rank in range(ranks):
        share = tl.load(parts + rank * width + 1) / values
        distance = tl.load(parts + rank * width + 2 + c, mask=within, other=0.0) - mean
        squares += tl.load(parts + rank * width + 2 + channels + c, mask=within, other=0.0)
        between = tl.fma(distance * distance, share, between)
    tl.store(mean_out + c, mean.to(mean_out.dtype.element_ty), mask=within)
    tl.store(var_out + c, (squares / values + between).to(var_out.dtype.element_ty), mask=within)
    if tl.program_id(0) == 0:
        tl.store(count_out, count.to(tl.int64))
        tl.store(empty_out, (column(parts, ranks, width) == 0.0).to(tl.int64))
