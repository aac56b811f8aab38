"""Accuracies in per cent: how exact a measured one is, and the axis on which it is drawn."""

from __future__ import annotations

import math
from collections.abc import Iterable

from ..report.chart import Series

__all__ = ["axis", "difference_error", "standard_error"]


def standard_error(accuracy: float, images: int) -> float:
    """Standard error of an accuracy (0 to 1) measured on so many images, in percentage points: √(p(1 − p)/n)."""
    # With none wrong, or none right, the formula would say that nothing is uncertain: count one as the other.
    likely = min(max(accuracy, 1 / images), 1 - 1 / images)
    return 100 * math.sqrt(likely * (1 - likely) / images)


def difference_error(first: float, second: float, images: int) -> float:
    """At most the standard error of the difference of two accuracies on the same images, in percentage points.

    On each image the difference is −1, 0 or 1. Its mean is that of the accuracies, and its mean square is the share
    of images on which just one of the two is right: all that either gets wrong, where they share no error. With
    shared errors the standard error is smaller.
    """
    apart = min(1.0, (1 - first) + (1 - second), first + second)
    # With no error at all one image counts as wrong, as above.
    return 100 * math.sqrt(max(apart - (first - second) ** 2, 1 / images) / images)


def axis(lines: Iterable[Series]) -> tuple[float, float]:
    """The range of an axis of accuracies in per cent: from the ten below the lowest value shown to 100."""
    shown = [value for line in lines for value in (*line.y, *(line.low or ())) if math.isfinite(value)]
    return max(0.0, min(90.0, 10.0 * math.floor(min(shown, default=0.0) / 10))), 100.0
