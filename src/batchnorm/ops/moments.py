"""Moments of a whole from the moments of its parts."""

from __future__ import annotations

from torch import Tensor

__all__ = ["merge_moments"]


def merge_moments(
    count: Tensor, mean: Tensor, var: Tensor, other_count: Tensor, other_mean: Tensor, other_var: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean and biased variance of two sets together (Chan, Golub & LeVeque 1979).

    With n = n₁ + n₂ and δ = mean₂ − mean₁:  ``mean = mean₁ + δ·n₂/n`` and
    ``var = (n₁·var₁ + n₂·var₂)/n + δ²·n₁·n₂/n²``. Sets may be empty.

    Args:
        count: How many values the first set has, () or (C,), int64.
        mean: Their mean, (C,).
        var: Their biased variance, (C,).
        other_count: How many values the second set has.
        other_mean: Their mean.
        other_var: Their biased variance.

    Example:
        >>> import torch
        >>> from batchnorm.ops.eager import moments
        >>> x = torch.tensor([[1.0], [2.0], [6.0]])
        >>> merge_moments(*moments(x[:2]), *moments(x[2:]))
        (tensor(3), tensor([3.]), tensor([4.6667]))
    """
    total = count + other_count
    # In the moments' dtype: a quotient of integers would be float32 (seen: a relative error of 2e-8 in float64).
    share = other_count.to(mean.dtype) / total.clamp(min=1).to(mean.dtype)
    delta = other_mean - mean
    merged = var + (other_var - var) * share + delta * delta * share * (1 - share)
    return total, mean + delta * share, merged
