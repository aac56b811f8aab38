"""How the running buffers move, and when they must not."""

from __future__ import annotations

import torch
from torch import Tensor

from .eager import cast

__all__ = ["is_recomputation", "update_running"]


def update_running(
    running_mean: Tensor,
    running_var: Tensor,
    num_batches_tracked: Tensor | None,
    count: Tensor | int,
    mean: Tensor,
    var: Tensor,
    momentum: float | Tensor,
    skip_nonfinite: bool,
) -> None:
    """In place, ``running = (1 − momentum)·running + momentum·batch``, the variance by Bessel's correction.

    Nothing moves, the count of batches included, where the batch has fewer than two values a channel (it has no
    unbiased variance) or, with ``skip_nonfinite``, where any channel's statistic is not finite in the buffer's dtype.
    A count that is known without asking the device comes as a number. A recomputation moves nothing either.
    """
    if is_recomputation():
        return
    valid: Tensor | None = None
    if isinstance(count, int):
        if count < 2:
            return
        unbiased = var * (count / (count - 1))
    else:
        values = count.to(var.dtype)
        unbiased = var * (values / (values - 1).clamp(min=1))
        valid = count > 1
    batch_mean, batch_var = cast(mean, running_mean.dtype), cast(unbiased, running_var.dtype)
    if skip_nonfinite:
        # 0·v is 0 where v is finite and NaN elsewhere, and a sum of zeros cannot overflow.
        finite = (batch_mean * 0 + batch_var * 0).sum() == 0
        valid = finite if valid is None else valid & finite
    new_mean = _moved(running_mean, batch_mean, momentum, valid)
    new_var = _moved(running_var, batch_var, momentum, valid)
    # Nothing is written before everything is computed.
    running_mean.copy_(new_mean)
    running_var.copy_(new_var)
    if num_batches_tracked is not None:
        num_batches_tracked.add_(1 if valid is None else valid)


def is_recomputation() -> bool:
    """Whether this runs inside a backward pass: activation checkpointing is computing a forward pass again.

    The buffers have seen that batch. (While a compiler traces, nothing runs; the operator asks when it does.)
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def _moved(running: Tensor, batch: Tensor, momentum: float | Tensor, valid: Tensor | None) -> Tensor:
    moved = cast(running * (1 - momentum) + batch * momentum, running.dtype)
    return moved if valid is None else torch.where(valid, moved, running)
