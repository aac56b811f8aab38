"""Counts of values in equal bins, to which more values can be added."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["Histogram"]


class Histogram:
    """How many values lie in each of ``bins`` bins between ``low`` and ``high``, and how many beyond.

    Args:
        low: The lower edge of the first bin.
        high: The upper edge of the last one, which belongs to it.
        bins: How many.

    Attributes:
        counts: (bins,) int64.
        below: Values under ``low``.
        above: Values over ``high``.
        other: NaN.

    Example:
        >>> histogram = Histogram(0.0, 4.0, 4)
        >>> histogram.add(torch.tensor([0.5, 0.6, 3.0, 9.0]))
        >>> histogram.counts.tolist(), histogram.above, histogram.share(3.0, float("inf"))
        ([2, 0, 0, 1], 1, 0.5)
    """

    def __init__(self, low: float, high: float, bins: int) -> None:
        self.low, self.high, self.bins = low, high, bins
        self.counts: np.ndarray[Any, Any] = np.zeros(bins, dtype=np.int64)
        self.below = self.above = self.other = 0

    def add(self, values: Tensor) -> None:
        """Counts these too."""
        values = values.detach().to("cpu", torch.float64).flatten()
        below, above, other = (int(each.sum()) for each in (values < self.low, values > self.high, values.isnan()))
        self.below, self.above, self.other = self.below + below, self.above + above, self.other + other
        # histc leaves out what lies outside, and NaN: but it raises where something is not finite.
        kept = values[(values >= self.low) & (values <= self.high)]
        if len(kept):
            self.counts += torch.histc(kept, self.bins, self.low, self.high).to(torch.int64).numpy()

    @property
    def total(self) -> int:
        """All values, those beyond the edges included, NaN not."""
        return int(self.counts.sum()) + self.below + self.above

    @property
    def edges(self) -> np.ndarray[Any, Any]:
        """(bins + 1,)."""
        return np.linspace(self.low, self.high, self.bins + 1)

    def share(self, low: float, high: float) -> float:
        """The share of values from ``low`` to ``high``, taking those within a bin as evenly spread; 0 of none."""
        if not self.total:
            return 0.0
        edges = self.edges
        inside = np.clip((np.minimum(edges[1:], high) - np.maximum(edges[:-1], low)) / (edges[1] - edges[0]), 0, 1)
        found = float((inside * self.counts).sum())
        found += self.below if low < self.low else 0
        found += self.above if high > self.high else 0
        return found / self.total
