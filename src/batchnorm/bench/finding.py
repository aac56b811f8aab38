"""A number beside its target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .row import Row

__all__ = ["FUSED_MODES", "LARGE", "Finding", "number", "quantile", "ratio_finding"]

#: Bytes of an input from which it counts as large: neither it nor its gradient stays in a core's cache.
LARGE = 16e6
FUSED_MODES = ("norm+act", "norm+add+act")


@dataclass(frozen=True)
class Finding:
    """One number beside its target.

    Attributes:
        name: What it is.
        value: The number; None where no row tells it.
        target: What it should reach; None for a number without one.
        cases: How many rows are behind it.
        most: Whether the target is the most it may be, and not the least.
        share: Whether it is a share, to be read as a percentage.
    """

    name: str
    value: float | None
    target: float | None
    cases: int
    most: bool = False
    share: bool = False

    @property
    def met(self) -> bool | None:
        """Whether it reaches its target; None where there is no number or no target."""
        if self.value is None or self.target is None:
            return None
        return self.value <= self.target if self.most else self.value >= self.target

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """Name, number, target and number of cases as text."""
        target = "" if self.target is None else f"{'at most' if self.most else 'at least'} {self._said(self.target)}"
        return self.name, "not measured" if self.value is None else self._said(self.value), target, str(self.cases)

    def _said(self, value: float) -> str:
        return f"{100 * value:.0f}%" if self.share else f"{value:.2f}×"


def ratio_finding(name: str, rows: Sequence[Row], target: float | None, share: float = 0.5) -> Finding:
    """A quantile of the rows' ratios, which should reach its target."""
    return Finding(name, quantile(rows, share, lambda row: row.ratio), target, len(rows))


def quantile(rows: Sequence[Row], share: float, of: Callable[[Row], float | None]) -> float | None:
    """A quantile of what the rows tell; None where they tell nothing."""
    values = [value for row in rows if (value := of(row)) is not None]
    return float(np.quantile(values, share)) if values else None


def number(value: float | None) -> float:
    """NaN in place of nothing."""
    return float("nan") if value is None else value
