"""The variance that a batch norm learns under dropout, and the one that it meets without: by formula and measured."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from ... import BatchNorm1d
from ...reference import moments, pooled_moments
from ..claim import Value
from .population import met

__all__ = ["gaussian_ratio", "learned_variance", "shifts"]


def learned_variance(rate: float, mean: float, variance: float = 1.0) -> float:
    """Variance of a value after dropout: (σ² + (1 − p)·μ²)/p, with p = 1 − rate the share that is kept.

    Dropout gives y = m·x/p with m = 1 with probability p and 0 otherwise, independent of x. As m² = m,
    E[y] = E[x] = μ and E[y²] = E[x²]/p = (σ² + μ²)/p, and Var[y] = (σ² + μ²)/p − μ². For μ = 0 this is Li et al.'s
    σ²/p; a mean adds to it, because a value that is dropped falls from μ to 0.
    """
    keep = 1 - rate
    return (variance + (1 - keep) * mean * mean) / keep


def gaussian_ratio(rate: float, mean: float, batches: tuple[int, int, int]) -> float:
    """Learned over real variance of Gaussian values with standard deviation 1, drawn by torch's own generator.

    Args:
        rate: Of dropout.
        mean: Of the values.
        batches: How many batches the layer learns from, and again meets; size and channels of each.
    """
    count, size, channels = batches
    drop, norm = nn.Dropout(rate), BatchNorm1d(channels)
    for _ in range(count):
        norm(drop(mean + torch.randn(size, channels)))
    assert norm.running_var is not None
    drop.eval()
    real = pooled_moments(moments(drop(mean + torch.randn(size, channels)).numpy()) for _ in range(count))
    return float(norm.running_var.double().mean()) / float(real.unbiased_variance.mean())


def shifts(model: nn.Module, images: Tensor, rate: float) -> Mapping[str, Value]:
    """What the norms of a trained network learned, over what they meet with these images and no dropout.

    Each variance has the ε that the layer adds to it, so that one of a channel that is always 0 counts too. Means over
    channels are of logarithms.

    Args:
        model: In evaluation mode its learned statistics are in force in all layers.
        images: All that it was trained on.
        rate: Of dropout before the first norm, for the formula.
    """
    logs, formula = [], []
    for norm, real in met(model, images):
        learned = np.log(norm.running_var.double().numpy() + norm.eps)
        logs.append(learned - np.log(real.variance + norm.eps))
        expected = (real.variance + rate * np.square(real.mean)) / (1 - rate)
        formula.append(learned - np.log(expected + norm.eps))
    together = np.concatenate(logs)
    return {
        "by layer": [float(np.exp(np.abs(layer).mean())) for layer in logs],
        "shift": float(np.exp(np.abs(together).mean())),
        "learned over real": float(np.exp(together.mean())),
        "first layer over formula": float(np.exp(formula[0].mean())),
    }
