"""What a rank tells the others of its moments, and the moments of all of them together."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["merge_parts", "merge_ranks", "pack_moments"]


def pack_moments(input: Tensor, mask: Tensor | None) -> Tensor:
    """What a rank sends, (2 + 2·C,) float64: positions, padded ones included; valid ones; mean; M2.

    Example:
        >>> pack_moments(torch.tensor([[1.0], [3.0], [8.0]]), torch.tensor([True, True, False]))
        tensor([3., 2., 2., 2.], dtype=torch.float64)
    """
    # In float64: rounded to float32, a rank's mean would be off by a part of the spread where it is large beside that.
    count, mean, var = torch.ops.batchnorm.double_moments(input, mask)
    values = count.to(torch.float64)  # exact up to 2⁵³
    positions = torch.full((1,), input.numel() // max(input.shape[1], 1), dtype=torch.float64, device=input.device)
    return torch.cat((positions, values.view(1), mean, var * values))


def merge_parts(parts: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What all ranks have sent, (R, 2 + 2·C), merged.

    Returns:
        ``empty`` (), which is 1 where no rank had any position and 0 elsewhere (bool, or int64), ``count`` () int64,
        ``mean`` and biased ``var`` (C,) of ``dtype``.
    """
    channels = parts.shape[1] // 2 - 1
    merged = merge_ranks(parts[:, 1:2], parts[:, 2 : 2 + channels], parts[:, 2 + channels :])
    return parts[:, 0].sum() == 0, merged[0].to(torch.int64), merged[1].to(dtype), merged[2].to(dtype)


def merge_ranks(counts: Tensor, means: Tensor, squares: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean and biased variance of several sets together (Chan, Golub & LeVeque 1979, for R sets at once).

    With n = Σn_r:  ``mean = Σ n_r·mean_r / n`` and ``var = (Σ M2_r + Σ n_r·(mean_r − mean)²) / n``. Sets may be empty.

    Args:
        counts: How many values each set has, (R, 1), float64.
        means: Their means, (R, C), float64; of an empty set 0.
        squares: M2, their sums of squared distances from their own mean, (R, C), float64; of an empty set 0.

    Returns:
        ``count`` (), ``mean`` (C,) and ``var`` (C,), float64; mean and variance of nothing are 0.

    Example:
        >>> counts, means = torch.tensor([[2.0], [1.0]]).double(), torch.tensor([[2.0], [6.0]]).double()
        >>> merge_ranks(counts, means, torch.tensor([[2.0], [0.0]]).double())
        (tensor(3., ...), tensor([3.3333], ...), tensor([4.2222], ...))
    """
    count = counts.sum()
    shares = counts / count.clamp(min=1)
    mean = (means * shares).sum(0)
    # Twice: a mean of means that are large and near each other is off by their rounding, which the squares would see.
    mean = mean + ((means - mean) * shares).sum(0)
    distance = means - mean
    return count, mean, squares.sum(0) / count.clamp(min=1) + (distance * distance * shares).sum(0)
