"""A chart in words, for readers who hear the page: what it shows, its axes, and where each line ends."""

from __future__ import annotations

import math
from collections.abc import Iterator

from .chart import Chart, Contours, Curves, Intervals, Series
from .number import spoken

__all__ = ["described"]

_MOST = 8  # lines or rows that are told; more would not be listened to
_LONGEST = 900  # characters


def described(chart: Chart, figure: str = "") -> str:
    """Gives a chart in words.

    Args:
        chart: The chart.
        figure: The title of the figure that it is a panel of.
    """
    sentences = [figure, chart.title]
    if isinstance(chart, Intervals):
        sentences += [f"Axis: {chart.x_label}", *_some(list(_rows(chart)))]
    else:
        sentences.append(f"Across: {chart.x_label}; up: {chart.y_label}")
        if isinstance(chart, Contours):
            sentences.append(f"Heights: {chart.z_label}")
        series = chart.paths if isinstance(chart, Contours) else chart.series
        sentences += _some([words for each in series if each.label.strip() for words in _line(each, chart)])
    text = " ".join(
        sentence if sentence.endswith((".", "?", "!")) else f"{sentence}." for sentence in sentences if sentence
    )
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST].rsplit(' ', 1)[0]} …"


def _some(found: list[str]) -> list[str]:
    return found if len(found) <= _MOST else [*found[:_MOST], f"And {len(found) - _MOST} more"]


def _rows(chart: Intervals) -> Iterator[str]:
    for row in chart.rows:
        span = f", interval {spoken(row.low)} to {spoken(row.high)}" if not math.isnan(row.estimate) else ""
        yield f"{row.label}: {spoken(row.estimate)}{span}"
    yield f"Dotted line at {spoken(chart.reference)}: {chart.reference_label}"


def _line(series: Series, chart: Curves | Contours) -> Iterator[str]:
    points = [(x, y) for x, y in zip(series.x, series.y, strict=True) if math.isfinite(x) and math.isfinite(y)]
    if not points:
        return
    xs, ys = zip(*points, strict=True)
    if isinstance(chart, Contours):
        yield f"{series.label}: from ({_pair(points[0])}) to ({_pair(points[-1])})"
    elif series.shape == "step":
        x, y = max(points, key=lambda point: point[1])
        yield f"{series.label}: highest, {spoken(y)}, from {spoken(x)}"
    elif not series.line:
        yield f"{series.label}: points between {spoken(min(ys))} and {spoken(max(ys))}"
    elif len(points) == 2 and xs[0] == xs[1]:
        yield f"{series.label}: at {spoken(xs[0])}"
    else:
        yield f"{series.label}: {spoken(ys[-1])} at {spoken(xs[-1])}"


def _pair(point: tuple[float, float]) -> str:
    return f"{spoken(point[0])}, {spoken(point[1])}"
