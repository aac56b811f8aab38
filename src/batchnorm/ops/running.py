"""How the running buffers move, and when they must not."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..activation import Activation

__all__ = ["is_recomputation", "track", "training_by", "update_running"]

Forward = Callable[..., tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]


def training_by(forward: Forward) -> Forward:
    """The ``train`` of a set of kernels that has only the functional ``forward``: that, and then the buffers."""

    def train(
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        mask: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        num_batches_tracked: Tensor | None,
        momentum: float | None,
        skip_nonfinite: bool,
        eps: float,
        activation: Activation,
        keep_bits: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """As :func:`forward`; the running buffers, where there are any, then move by :func:`update_running`.

        ``momentum`` None is the cumulative average by ``num_batches_tracked``.
        """
        found = forward(input, weight, bias, residual, mask, eps, activation, keep_bits)
        if running_mean is not None and running_var is not None:
            buffers = (running_mean, running_var, num_batches_tracked)
            track(update_running, *buffers, input, mask, *found[1:4], momentum, skip_nonfinite)
        return found

    return train


def track(
    update: Callable[..., None],
    running_mean: Tensor,
    running_var: Tensor,
    num_batches_tracked: Tensor | None,
    input: Tensor,
    mask: Tensor | None,
    count: Tensor,
    mean: Tensor,
    var: Tensor,
    momentum: float | Tensor | None,
    skip_nonfinite: bool,
) -> None:
    """Have ``update`` (:func:`update_running`, or what stands for it in a graph) take in the batch ``input``."""
    if input.numel() == 0:
        # As in torch: an empty batch counts, and has no statistics to move the buffers by.
        if num_batches_tracked is not None and not is_recomputation():
            num_batches_tracked.add_(1)
        return
    if isinstance(momentum, Tensor):
        momentum = momentum.detach()  # or the buffers would join the graph
    elif momentum is None:
        # The count stays on its device: reading it would wait for it.
        assert num_batches_tracked is not None
        momentum = 1.0 / (num_batches_tracked + 1)
    # Without a mask the count is known, and nothing has to be computed from it on the device.
    values = count if mask is not None else input.numel() // input.shape[1]
    update(running_mean, running_var, num_batches_tracked, values, mean, var, momentum, skip_nonfinite)


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
    batch_mean, batch_var = mean.to(running_mean.dtype), unbiased.to(running_var.dtype)
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
    moved = (running * (1 - momentum) + batch * momentum).to(running.dtype)
    return moved if valid is None else torch.where(valid, moved, running)
