"""Paired differences and their confidence intervals: Student's t, over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..report.number import signed, spoken

__all__ = ["CONFIDENCE", "Interval", "interval", "paired"]

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and the interval that holds the true mean with 95% confidence."""

    estimate: float
    low: float
    high: float
    count: int

    @property
    def numbers(self) -> tuple[float, float, float]:
        """Estimate, low and high."""
        return self.estimate, self.low, self.high

    def signed(self, places: int = 2) -> str:
        """A difference in words, as in "+0.12 (−0.30 to +0.54)"."""
        estimate, low, high = (signed(value, places) for value in self.numbers)
        return f"{estimate} ({low} to {high})"

    def spoken(self, figures: int = 3) -> str:
        """The same of any number, as in "2.5 (1.1 to 4)"."""
        estimate, low, high = (spoken(value, figures) for value in self.numbers)
        return f"{estimate} ({low} to {high})"

    def times(self) -> str:
        """A ratio in words, as in "2.5 times (1.1 to 4)"."""
        estimate, low, high = (spoken(value) for value in self.numbers)
        return f"{estimate} times ({low} to {high})"

    def exponential(self) -> Interval:
        """The same on the scale of ratios, where the values were logarithms of ratios."""
        return Interval(math.exp(self.estimate), math.exp(self.low), math.exp(self.high), self.count)

    def scaled(self, factor: float) -> Interval:
        """The same in another unit (``factor`` > 0)."""
        return Interval(self.estimate * factor, self.low * factor, self.high * factor, self.count)


def interval(values: Sequence[float]) -> Interval:
    """Mean and Student-t 95% confidence interval: x̄ ± t(n−1, 0.975)·s/√n.

    One value alone says nothing about its spread: its interval is all numbers.

    Raises:
        ValueError: If there is no value, or one is not finite.
    """
    from scipy.stats import t  # noqa: PLC0415 - a tool; the library itself does not need scipy

    count = len(values)
    if count == 0 or not all(math.isfinite(value) for value in values):
        raise ValueError(f"an interval needs finite values, got {list(values)}")
    mean = math.fsum(values) / count
    if count == 1:
        return Interval(mean, -math.inf, math.inf, 1)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    half = float(t.ppf(0.5 + CONFIDENCE / 2, count - 1)) * deviation / math.sqrt(count)
    return Interval(mean, mean - half, mean + half, count)


def paired(treatment: Sequence[float], control: Sequence[float]) -> Interval:
    """Interval of treatment − control, seed by seed: what both share with the seed cancels."""
    return interval([after - before for after, before in zip(treatment, control, strict=True)])
