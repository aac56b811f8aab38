"""Claims of several statements: each case of a statement is judged by an interval, and all must hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .claim import Verdict
from .statistics import Interval, interval

__all__ = ["Case", "joined", "rank"]

_DECIDES = (Verdict.NOT_REPRODUCED, Verdict.INCONCLUSIVE, Verdict.REPRODUCED)


@dataclass(frozen=True)
class Case:
    """One number that a statement is about.

    Args:
        name: What it is.
        values: One a seed.
        limit: What the statement compares it with.
        above: Whether the statement says "above"; otherwise "below".
        factor: Whether it is the logarithm of a factor, as against a difference.
    """

    name: str
    values: Sequence[float]
    limit: float
    above: bool
    factor: bool

    @property
    def interval(self) -> Interval:
        """The estimate over seeds."""
        return interval(self.values)

    @property
    def verdict(self) -> Verdict:
        """Whether the 95% interval lies on the stated side of the limit, wholly on the other, or on both."""
        span = self.interval
        if span.low > self.limit if self.above else span.high < self.limit:
            return Verdict.REPRODUCED
        if span.high <= self.limit if self.above else span.low >= self.limit:
            return Verdict.NOT_REPRODUCED
        return Verdict.INCONCLUSIVE


def rank(verdict: Verdict) -> int:
    """Place in the order in which verdicts on parts decide the verdict on the whole: what refutes it comes first."""
    return _DECIDES.index(verdict)


def joined(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict on all together: one refuted refutes them, and all must hold."""
    return min(verdicts, key=rank)
