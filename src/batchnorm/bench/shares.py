"""What share of a training step is spent in norms, and in activations and sums."""

from __future__ import annotations

import os
from collections.abc import Callable

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


def shares(step: Callable[[], object]) -> tuple[float, float]:
    """The shares of norms, and of activations and sums, by the profiler's self time over one step.

    Args:
        step: A training step; it is run once before.
    """
    step()
    # Else the library below the profiler announces itself on stderr.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    norm = activation = total = 0.0
    for event in profiler.key_averages():
        total += event.self_cpu_time_total
        operator = event.key.removeprefix("aten::")
        if "batch_norm" in operator or operator.startswith("batchnorm::"):
            norm += event.self_cpu_time_total
        elif event.key.startswith("aten::") and operator.removesuffix("_").removesuffix("_backward") in _ACTIVATIONS:
            activation += event.self_cpu_time_total
    return (norm / total, activation / total) if total else (0.0, 0.0)
