"""Gradients of random networks layer by layer: measured, and predicted for wide layers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["log_norms", "lost", "wide_factor"]

_LEAST, _MOST = 2.3e-308, 1.7e308  # float64's smallest normal number and nearly its largest


def wide_factor(activation: str) -> float:
    """Factor a layer of the gradient's norm with batch norm before the activation: wide layers, large batches.

    √(E[φ′(x)²]/Var[φ(x)]) for standard normal x: the activation's slope, over the spread by which the next batch norm
    divides. For ReLU it is √(π/(π − 1)). It is below 1 for no φ: Var[φ] ≤ E[φ′²] is the Gaussian Poincaré inequality.
    """
    x = np.linspace(-12, 12, 240_001)
    weight = np.exp(-x * x / 2)
    weight /= weight.sum()
    value = {"sigmoid": 1 / (1 + np.exp(-x)), "tanh": np.tanh(x), "relu": np.maximum(x, 0)}[activation]
    slope = {"sigmoid": value * (1 - value), "tanh": 1 - value**2, "relu": np.heaviside(x, 0.5)}[activation]
    variance = (weight * value**2).sum() - (weight * value).sum() ** 2
    return math.sqrt(float((weight * slope**2).sum() / variance))


def log_norms(model: nn.Sequential, images: Tensor, labels: Tensor) -> list[float]:
    """Logarithm of the gradient's norm at each hidden layer's linear output, from the first to the last."""
    outputs: list[Tensor] = []
    hidden = images
    for module in model:
        hidden = module(hidden)
        if isinstance(module, nn.Linear):
            outputs.append(hidden)
    gradients = torch.autograd.grad(nn.functional.cross_entropy(hidden, labels), outputs[:-1])
    norms = [float(gradient.norm()) for gradient in gradients]
    # A gradient that underflows float64 counts as its smallest normal number: it has vanished. One that is no number
    # counts as the largest: results hold no NaN.
    return [math.log(max(norm, _LEAST) if math.isfinite(norm) else _MOST) for norm in norms]


def lost(logs: Sequence[float]) -> bool:
    """Whether nothing can be said of how these norms change by layer: one is no number, or the last has vanished."""
    return max(logs) >= math.log(_MOST) or logs[-1] <= math.log(_LEAST)
