"""Lines, bands, points and histograms over a common axis."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from ..chart import Curves, Series
from ..written import escape
from .axes import LEFT, Axis, Drawing, fit, numbers
from .hover import bars, hover
from .labels import LINE_HEIGHT, Label, column, inside, peaks, room
from .symbols import CIRCLE, Symbol, symbols

__all__ = ["curves", "line", "ranges"]

_TOP, _BOTTOM = 14, 34
_MANY = 80  # points from which on marks are drawn smaller
_AT_THE_END = 0.85  # a line that ends further left is named where it ends


def curves(chart: Curves, height: int = 350) -> Drawing:
    """Gives the figure of lines over a common axis, as many pixels high or as high as its names need."""
    x_axis, y_axis = ranges(chart)
    marks = symbols(chart.series)
    ends, inner, tops = _labels(chart.series, marks, x_axis)
    if tops and chart.y_range is None and not chart.log_y:
        # Names of histograms stand above them.
        stack = 1 + LINE_HEIGHT * (1 + len(tops)) / height
        y_axis = Axis(y_axis.low, y_axis.low + (y_axis.high - y_axis.low) * stack)
    # As high as it must be for its names.
    height = max(height, round(sum(label.height for label in ends)) + _TOP + _BOTTOM)
    pixels = height - _TOP - _BOTTOM
    traces = [
        trace
        for series, mark in zip(chart.series, marks, strict=True)
        for trace in _traces(chart, series, mark, y_axis)
    ]
    annotations, gutter = column(ends, x_axis, y_axis, pixels)
    annotations += inside(inner, x_axis, y_axis, pixels)
    annotations += peaks(tops, x_axis, y_axis, pixels)
    margin = {"l": LEFT, "r": room(ends, x_axis) + gutter, "t": _TOP, "b": _BOTTOM}
    vertical = y_axis.layout() | {"automargin": "left"}
    layout = {"height": height, "margin": margin, "xaxis": x_axis.layout(chart.x_ticks), "yaxis": vertical}
    return {"data": traces, "layout": layout | {"annotations": annotations}}


def ranges(chart: Curves) -> tuple[Axis, Axis]:
    """Gives its axes: as they are stated, or so that all can be seen."""
    x_axis = fit((x for series in chart.series for x in series.x), chart.log_x, margin=0.02)
    values = (y for series in chart.series for part in (series.y, series.low, series.high) for y in part or ())
    y_axis = fit(values, chart.log_y, base=0.0 if any(series.fill for series in chart.series) else None)
    return (
        x_axis if chart.x_range is None else Axis(*chart.x_range, log=chart.log_x),
        y_axis if chart.y_range is None else Axis(*chart.y_range, log=chart.log_y),
    )


def _labels(
    series: Sequence[Series], marks: Sequence[Symbol], x_axis: Axis
) -> tuple[list[Label], list[Label], list[Label]]:
    """Names at the right edge, names of lines that end before it, and names of histograms."""
    ends: list[Label] = []
    inner: list[Label] = []
    tops: list[Label] = []
    for each, mark in zip(series, marks, strict=True):
        points = [(x, y) for x, y in zip(each.x, each.y, strict=True) if math.isfinite(x) and math.isfinite(y)]
        if not points or not each.label.strip():
            continue
        if each.shape == "step":
            # Where it is highest; a histogram ends at 0, and so do all others. The bar's middle, not its edge.
            peak = max(range(len(points)), key=lambda index: points[index][1])
            edges = points[peak][0], points[min(peak + 1, len(points) - 1)][0]
            tops.append(Label(each.label, sum(edges) / 2, points[peak][1], each.color))
            continue
        shown = [point for point in points if x_axis.low <= point[0] <= x_axis.high] or points
        # Points alone do not lead to their name: it shows their mark.
        name = each.label if each.line else f"{mark.sign}\u00a0{each.label}"
        label = Label(name, *(shown[-1] if each.line else max(shown)), each.color)
        (ends if x_axis.share(label.x) >= _AT_THE_END else inner).append(label)
    return ends, inner, tops


def _traces(chart: Curves, series: Series, mark: Symbol, y_axis: Axis) -> Iterator[Drawing]:
    if series.low is not None and series.high is not None:
        yield from _band(series, y_axis)
    if series.shape == "step":
        yield line(series, mark) | {"hoverinfo": "skip"}
        yield from bars(series, chart.x_label, chart.y_label)
    else:
        yield line(series, mark) | hover(series, chart.x_label, chart.y_label)


def line(series: Series, mark: Symbol = CIRCLE) -> Drawing:
    """Gives the trace of one series, without its band and its name."""
    marks = series.markers or not series.line
    many = len(series.x) > _MANY
    trace: Drawing = {
        "type": "scatter",
        "x": numbers(series.x),
        "y": numbers(series.y),
        "name": escape(series.label),
        "mode": "+".join(["lines"] * series.line + ["markers"] * marks),
        "line": {"width": 2.5, "dash": series.dash, "shape": "hv" if series.shape == "step" else "linear"},
        "marker": {
            "size": 4 if many else 8 if mark.open else 7,
            "opacity": 0.6 if many and not series.line else 1,
            "symbol": mark.name,
            "line": {"width": 0 if not mark.open else 1 if many else 2},
        },
        "meta": {"color": series.color},
    }
    if series.links:
        trace["meta"] |= {"links": list(series.links)}
    if series.fill:
        trace |= {"fill": "tozeroy", "meta": trace["meta"] | {"fill": True}}
        trace["line"]["width"] = 1.8
    return trace


def _band(series: Series, y_axis: Axis) -> Iterator[Drawing]:
    """One closed area for each stretch without a gap; an edge without end is drawn to the axis' own."""
    stretch: list[tuple[float, float, float]] = []
    for x, low, high in [*zip(series.x, series.low or (), series.high or (), strict=True), (math.nan,) * 3]:
        if math.isfinite(x) and not math.isnan(low) and not math.isnan(high):
            stretch.append((x, _edge(low, y_axis), _edge(high, y_axis)))
            continue
        if len(stretch) > 1:
            yield {
                "type": "scatter",
                "x": [point[0] for point in stretch] + [point[0] for point in reversed(stretch)],
                "y": [point[1] for point in stretch] + [point[2] for point in reversed(stretch)],
                "mode": "lines",
                "line": {"width": 0},
                "fill": "toself",
                "hoverinfo": "skip",
                "meta": {"color": series.color, "band": True},
            }
        stretch = []


def _edge(value: float, y_axis: Axis) -> float:
    return y_axis.hold(value) if math.isinf(value) or (y_axis.log and value <= 0) else value
