"""The running buffers as kernels move them."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..running import is_recomputation
from .launch import Known, launch
from .running import move_running
from .tiles import power_of_two

__all__ = ["NO_MOVE", "Buffers", "Move", "update_running"]

Buffers = tuple[Tensor, Tensor, Tensor | None]

_MOVED_AT_ONCE = 1024  # channels
_WARPS = 4

#: ``tensors``, ``momentum`` and ``constants`` where nothing is to move.
NO_MOVE: tuple[tuple[None, ...], tuple[float, float], dict[str, Any]] = (
    (None, None, None, None),
    (0.0, 0.0),
    {"CUMULATIVE": False, "SKIP": False, "MOVED": 1},
)


class Move:
    """The running buffers, and how they are to move.

    They are written to past torch, which has to know of it, and before: it refuses what must not be written to.

    Attributes:
        tensors: The buffers as kernels write to them, and the count of values.
        momentum: A number in double precision as two in single precision.
        constants: What is compiled in.
    """

    def __init__(self, buffers: Buffers, count: Tensor, momentum: float | Tensor | None, skip_nonfinite: bool) -> None:
        running_mean, running_var, num_batches_tracked = buffers
        self._buffers = [running_mean, running_var]
        if num_batches_tracked is not None:
            self._buffers.append(num_batches_tracked)
        for buffer, shape in zip(self._buffers, (running_mean.shape, running_mean.shape, ()), strict=False):
            if buffer.device != count.device or buffer.shape != shape or 0 in buffer.stride():
                described = f"shape {tuple(buffer.shape)}, strides {buffer.stride()}, on {buffer.device}"
                raise RuntimeError(f"batchnorm: a running buffer of {described} cannot be moved.")
        torch.autograd.graph.increment_version(self._buffers)
        # A vector with gaps is moved in a copy.
        self._written = [buffer.resolve_neg().contiguous() for buffer in self._buffers]
        nothing = (None,) if num_batches_tracked is None else ()
        self.tensors = (*self._written, *nothing, count)
        self._of_tensor = momentum if isinstance(momentum, Tensor) else None
        self.momentum = (0.0, 0.0) if momentum is None or self._of_tensor is not None else _two(float(momentum))
        self.constants = {
            "CUMULATIVE": momentum is None,
            "SKIP": skip_nonfinite,
            "MOVED": min(power_of_two(running_mean.numel()), _MOVED_AT_ONCE),
        }

    def launch(self, mean: Tensor, var: Tensor, known: Known | None = None) -> None:
        """Move them in a launch of their own; elsewhere one of another kernel's programs does."""
        for statistic in (mean, var):
            if statistic.shape != self._buffers[0].shape or statistic.device != self._buffers[0].device:
                described = f"shape {tuple(statistic.shape)} on {statistic.device}"
                raise RuntimeError(f"batchnorm: a statistic of {described} does not go with the running buffers.")
        tensors = (*self.tensors, mean.contiguous(), var.contiguous(), self._of_tensor)
        launch(move_running, 1, mean, tensors, (*self.momentum, mean.numel()), _WARPS, self.constants, None, known)

    def finish(self) -> None:
        """Write back what was moved in a copy."""
        for buffer, written in zip(self._buffers, self._written, strict=True):
            if buffer is not written:
                buffer.copy_(written)


@functools.lru_cache(256)
def _two(number: float) -> tuple[float, float]:
    rounded = float(np.float32(number))
    return rounded, number - rounded


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
    """As :func:`batchnorm.ops.running.update_running`."""
    if is_recomputation() or (isinstance(count, int) and count < 2):
        return
    if isinstance(count, int):
        count = torch.full((), count, dtype=torch.int64, device=mean.device)
    move = Move((running_mean, running_var, num_batches_tracked), count, momentum, skip_nonfinite)
    move.launch(mean, var)
    move.finish()
