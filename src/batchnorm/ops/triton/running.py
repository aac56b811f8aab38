"""The running buffers, moved by one program that sees all channels, as :mod:`batchnorm.ops.running` specifies."""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["move", "move_running"]


@triton.jit
def batch_statistics(mean, var, c, there, n, running_mean, running_var, COMPUTE: tl.constexpr):
    """Mean and unbiased variance as the buffers' dtypes hold them."""
    middle = tl.load(mean + c, mask=there, other=0.0)
    spread = tl.load(var + c, mask=there, other=0.0)
    values = n.to(spread.dtype)
    unbiased = spread * (values / tl.maximum(values - 1.0, 1.0))
    middle = middle.to(running_mean.dtype.element_ty).to(COMPUTE)
    return middle, unbiased.to(running_var.dtype.element_ty).to(COMPUTE)


@triton.jit
def move(
    running_mean,
    running_var,
    num_batches_tracked,
    count,
    mean,
    var,
    momentum_tensor,
    momentum,
    momentum_rest,
    C,
    CUMULATIVE: tl.constexpr,
    SKIP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``running = (1 − momentum)·running + momentum·batch``, or nothing at all.

    ``momentum`` and ``momentum_rest`` add up to the number in double precision;
    ``momentum_tensor`` has it where it is a tensor, and with ``CUMULATIVE`` it is one over the number of batches, this
    one included.
    """
    OF_MEAN: tl.constexpr = running_mean.dtype.element_ty == tl.float64
    DOUBLE: tl.constexpr = OF_MEAN or running_var.dtype.element_ty == tl.float64
    COMPUTE: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    n = tl.load(count)
    if num_batches_tracked is not None:
        tracked = tl.load(num_batches_tracked)
    moves = n > 1
    if SKIP:
        bad = tl.zeros((BLOCK,), tl.int32)
        for begin in range(0, C, BLOCK):
            c = begin + tl.arange(0, BLOCK)
            there = c < C
            middle, unbiased = batch_statistics(mean, var, c, there, n, running_mean, running_var, COMPUTE)
            # What is finite less itself is 0, and all else NaN.
            bad += tl.where(there & (middle - middle + (unbiased - unbiased) != 0.0), 1, 0)
        moves = moves & (tl.sum(bad, 0) == 0)
    if CUMULATIVE:
        by = 1.0 / (tracked + 1).to(COMPUTE)
    elif momentum_tensor is not None:
        by = tl.load(momentum_tensor).to(COMPUTE)
    elif DOUBLE:
        by = tl.cast(momentum, tl.float64) + tl.cast(momentum_rest, tl.float64)
    else:
        by = tl.cast(momentum, tl.float32)
    for begin in range(0, C, BLOCK):
        c = begin + tl.arange(0, BLOCK)
        there = (c < C) & moves
        middle, unbiased = batch_statistics(mean, var, c, c < C, n, running_mean, running_var, COMPUTE)
        old_mean = tl.load(running_mean + c, mask=there, other=0.0).to(COMPUTE)
        old_var = tl.load(running_var + c, mask=there, other=0.0).to(COMPUTE)
        new_mean = (old_mean * (1.0 - by) + middle * by).to(running_mean.dtype.element_ty)
        new_var = (old_var * (1.0 - by) + unbiased * by).to(running_var.dtype.element_ty)
        tl.store(running_mean + c, new_mean, mask=there)
        tl.store(running_var + c, new_var, mask=there)
    if num_batches_tracked is not None:
        tl.debug_barrier()  # every warp has read it
        tl.store(num_batches_tracked, tracked + moves.to(tracked.dtype))


@triton.jit(do_not_specialize=["channels"])
def move_running(
    running_mean,
    running_var,
    num_batches_tracked,
    count,
    mean,
    var,
    momentum_tensor,
    momentum,
    momentum_rest,
    channels,
    CUMULATIVE: tl.constexpr,
    SKIP: tl.constexpr,
    MOVED: tl.constexpr,
):
    """:func:`move` as a launch of one program."""
    move(
        running_mean,
        running_var,
        num_batches_tracked,
        count,
        mean,
        var,
        momentum_tensor,
        momentum,
        momentum_rest,
        channels,
        CUMULATIVE,
        SKIP,
        MOVED,
    )
