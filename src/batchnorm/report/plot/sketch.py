"""A chart's outline, as small as a stamp: its named lines or its intervals, without numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..chart import Contours, Curves, Figure, Intervals, Panels, Pictures, Series
from ..small import Small
from .axes import Axis, fit
from .curves import ranges

__all__ = ["sketch"]

_RIM = 0.06  # of the sketch's height that is left free, for lines at its edge


def sketch(figure: Figure) -> Small | None:
    """Gives the outline of a chart, or of the first of several; None where there is none to draw."""
    if isinstance(figure, Panels):
        return sketch(figure.charts[0]) if figure.charts else None
    if isinstance(figure, Pictures):
        return None
    if isinstance(figure, Intervals):
        return Small("", "", _rows(figure), y_range=(-_RIM, 1 + _RIM))
    if isinstance(figure, Contours):
        # The paths alone, as large as they can be.
        x_axis = fit((x for path in figure.paths for x in path.x), False)
        drawn = _scaled(figure.paths, x_axis, fit((y for path in figure.paths for y in path.y), False))
    else:
        drawn = _scaled(_telling(figure), *ranges(figure))
    return Small("", "", drawn, y_range=(-_RIM, 1 + _RIM)) if drawn else None


def _telling(chart: Curves) -> Sequence[Series]:
    """The lines with a name, without those of single seeds around them; all where none has a name."""
    return [series for series in chart.series if series.label.strip()] or chart.series


def _scaled(series: Sequence[Series], x_axis: Axis, y_axis: Axis) -> list[Series]:
    return [
        Series(
            "",
            [_share(x_axis, x) for x in each.x],
            [_share(y_axis, y) for y in each.y],
            each.color,
            dash=each.dash,
            line=each.line,
            shape=each.shape,
            fill=each.fill and not y_axis.log,
        )
        for each in series
    ]


def _share(axis: Axis, value: float) -> float:
    return math.nan if math.isnan(value) else axis.share(value)


def _rows(chart: Intervals) -> list[Series]:
    values = [value for row in chart.rows for value in (row.low, row.high, row.estimate)]
    axis = fit([*values, chart.reference], chart.log_x)
    reference = axis.share(chart.reference)
    drawn = [Series("", [reference, reference], [0.0, 1.0], 0, dash="dot")]
    for place, row in enumerate(chart.rows):
        if not math.isnan(row.estimate):
            height = 1 - (place + 0.5) / len(chart.rows)
            drawn.append(Series("", [axis.share(row.low), axis.share(row.high)], [height, height], row.color))
            drawn.append(Series("", [axis.share(row.estimate)], [height], row.color, line=False))
    return drawn
