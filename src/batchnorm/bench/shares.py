"""What share of a training step is spent in norms, and in activations and sums."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

__all__ = ["shares"]

_ACTIVATIONS = (
    "relu",
    "leaky_relu",
    "clamp_min",
    "threshold",
    "hardtanh",
    "silu",
    "hardswish",
    "gelu",
    "sigmoid",
    "tanh",
    "elu",
    "add",
)


def shares(step: Callable[[], object], device: str = "cpu") -> tuple[float, float]:
    """The shares of norms, and of activations and sums, by the profiler's self time over one step.

    Args:
        step: A training step; it is run once before.
        device: Whose time: on a GPU that of the kernels that an operator launched.
    """
    step()
    # Else the library below the profiler announces itself on stderr.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    on_gpu = device == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    with profile(activities=activities) as profiler:
        step()
        if on_gpu:
            torch.cuda.synchronize()
    norm = activation = total = 0.0
    for event in profiler.key_averages():
        # Kernels have rows of their own; what launched them has their time as well.
        if event.device_type.name != "CPU":
            continue
        spent = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        total += spent
        operator = event.key.removeprefix("aten::")
        if "batch_norm" in operator or operator.startswith("batchnorm::"):
            norm += spent
        elif event.key.startswith("aten::") and operator.removesuffix("_").removesuffix("_backward") in _ACTIVATIONS:
            activation += spent
    return (norm / total, activation / total) if total else (0.0, 0.0)
