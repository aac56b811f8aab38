"""The running buffers as kernels move them."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from ..running import is_recomputation
from .launch import launch
from .running import move_running
from .tiles import power_of_two

__all__ = ["Buffers", "Move", "update_running"]

Buffers = tuple[Tensor, Tensor, Tensor | None]

_MOVED_AT_ONCE = 1024  # channels


class Move:
    """The running buffers, and how they are to move.

    They are written to past torch, which has to know of it, and before: it refuses what must not be written to.
    """

    def __init__(
        self, buffers: Buffers, count: Tensor | int, momentum: float | Tensor | None, skip_nonfinite: bool
    ) -> None:
        self._buffers = [buffer for buffer in buffers if buffer is not None]
        channels = buffers[0].numel()
        torch.autograd.graph.increment_version(self._buffers)
        # A vector with gaps is moved in a copy.
        self._written = [buffer.contiguous() for buffer in self._buffers]
        number = momentum if isinstance(momentum, float) else 0.0
        rounded = _as_float32(number)
        self.momentum = momentum if isinstance(momentum, Tensor) else None
        written = self._written if buffers[2] is not None else (*self._written, None)
        self.arguments = (*written, count, rounded, number - rounded)
        block = min(power_of_two(channels), _MOVED_AT_ONCE)
        self.constants = {"CUMULATIVE": momentum is None, "SKIP": skip_nonfinite, "MOVED": block}

    def launch(self, mean: Tensor, var: Tensor) -> None:
        """Move them in a launch of their own; elsewhere one of another kernel's programs does."""
        *buffers, count, momentum, rest = self.arguments
        settings = dict(self.constants)
        block = settings.pop("MOVED")
        by = (self.momentum, momentum, rest)
        arguments = (*buffers, count, mean.contiguous(), var.contiguous(), *by, mean.numel())
        launch(move_running, 1, mean, *arguments, **settings, BLOCK=block, warps=4)

    def finish(self) -> None:
        """Write back what was moved in a copy."""
        for buffer, written in zip(self._buffers, self._written, strict=True):
            if buffer is not written:
                buffer.copy_(written)


@functools.lru_cache(256)
def _as_float32(number: float) -> float:
    return float(np.float32(number))


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
    """As :func:`batchnorm.ops.running.update_running`, in one launch."""
    if is_recomputation() or (isinstance(count, int) and count < 2):
        return
    move = Move((running_mean, running_var, num_batches_tracked), count, momentum, skip_nonfinite)
    move.launch(mean, var)
    move.finish()
