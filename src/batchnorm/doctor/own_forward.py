"""What a norm with a ``forward`` of its own normalises by: its flag does not tell, but what it gives does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from ..surgery.kinds import find
from .evidence import Layer

__all__ = ["FROZEN", "has_own_forward", "is_frozen", "normalizes_by_batch"]

#: Why such a layer is frozen, where it is.
FROZEN = "its class uses the running statistics in training too"

# So far off, by the outputs' own size (that of their variance is off by N / (N - 1) where a class takes the unbiased
# one), and half as far as the other prediction.
_NEAR, _NEARER = 0.1, 0.5


def has_own_forward(layer: _NormBase) -> bool:
    """Whether a batch norm computes something that its library did not write."""
    found = find(layer)
    return found is None or type(layer).forward is not found.base.forward or "forward" in vars(layer)


def normalizes_by_batch(
    layer: _NormBase, input: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor] | None, *, moved: bool
) -> bool:
    """Whether such a layer has normalised a batch by that batch's own statistics, not by the running ones.

    Args:
        layer: The layer.
        input: Mean and biased variance of its input's channels, float64 on the CPU.
        output: Likewise, of its output; None where that has other channels, or something was added.
        moved: Whether the call has changed the running statistics.
    """
    by_flag = layer.training or layer.running_mean is None
    if layer.running_mean is None or layer.running_var is None:
        return by_flag
    if output is not None and output[0].shape == input[0].shape:
        running = layer.running_mean.detach().cpu().double(), layer.running_var.detach().cpu().double()
        by_batch, by_running = (_off(layer, input, used, output) for used in (input, running))
        if min(by_batch, by_running) < _NEAR and min(by_batch, by_running) < _NEARER * max(by_batch, by_running):
            return by_batch < by_running
    # It computes something more, or both are alike: torch's own layers move their statistics when they go by the batch.
    return by_flag and (moved or not layer.track_running_stats)


def _off(layer: Any, input: tuple[Tensor, Tensor], used: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> float:
    """How far the output's moments are from those of input that is normalised by the ones ``used``."""
    scale = (used[1].clamp(min=0) + float(getattr(layer, "eps", 0.0))).rsqrt()
    mean, deviation = (input[0] - used[0]) * scale, input[1].clamp(min=0).sqrt() * scale
    if isinstance(weight := getattr(layer, "weight", None), Tensor):
        gamma = weight.detach().cpu().double().flatten()
        mean, deviation = mean * gamma, deviation * gamma.abs()
    if isinstance(bias := getattr(layer, "bias", None), Tensor):
        mean = mean + bias.detach().cpu().double().flatten()
    size = (output[0].square() + output[1]).mean().clamp(min=torch.finfo(torch.float32).tiny)
    off = (output[0] - mean).square() + (output[1].clamp(min=0).sqrt() - deviation).square()
    return float((off.mean() / size).sqrt())


def is_frozen(layer: Layer) -> bool:
    """Whether a layer was in training mode, and used its running statistics and left them as they are all the same."""
    calls = [] if layer.in_training is None else layer.in_training.calls
    return (
        layer.module is not None
        and layer.has_statistics
        and has_own_forward(layer.module)
        and bool(calls and layer.after_train)
        and not any(call.by_batch or call.moved for call in calls)
    )
