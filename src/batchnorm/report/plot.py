"""From a described chart to the figure that plotly.js draws, as plain dictionaries.

Plotly reads a little HTML in its texts, so names are escaped here as well. Colours are left as indices
(``meta``): the page's script fills them in for light, dark and print. Labels stand at the lines' ends, moved
apart where they would overlap, so that no legend has to be decoded.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from html import escape
from itertools import pairwise
from typing import Any

from .chart import Chart, Curves, Intervals

__all__ = ["figure"]

Figure = dict[str, Any]

_HEIGHT = 380
_TOP, _BOTTOM, _LEFT = 34, 58, 46
_LABEL_WIDTH = 15  # characters; a label wraps beyond them so that a telephone keeps most of its width
_LINE_HEIGHT = 14.0  # pixels of one line of a label


def figure(chart: Chart) -> Figure:
    """Gives ``{"data": ..., "layout": ...}`` for a chart."""
    return _intervals(chart) if isinstance(chart, Intervals) else _curves(chart)


def _numbers(values: Sequence[float]) -> list[float | None]:
    # JSON has no NaN and plotly draws null as the gap that is meant.
    return [float(value) if math.isfinite(value) else None for value in values]


def _axis(label: str, log: bool) -> Figure:
    axis: Figure = {
        "title": {"text": escape(label), "standoff": 10, "font": {"size": 13}},
        "zeroline": False,
        "fixedrange": True,
    }
    if log:
        axis |= {"type": "log", "dtick": 1}
    return axis


def _extent(chart: Curves) -> tuple[float, float]:
    if chart.y_range is not None:
        return chart.y_range
    values = [value for line in chart.series for part in (line.y, line.low or (), line.high or ()) for value in part]
    finite = [value for value in values if math.isfinite(value) and (value > 0 or not chart.log_y)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    if chart.log_y:
        return low / 1.3, high * 1.3
    margin = 0.05 * (high - low) or 0.5
    return low - margin, high + margin


def _spread(wanted: Sequence[float], heights: Sequence[float]) -> list[float]:
    """Moves label centres (pixels from the bottom) apart until none overlaps, keeping their order."""
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    placed = list(wanted)
    for below, above in pairwise(order):
        placed[above] = max(placed[above], placed[below] + (heights[below] + heights[above]) / 2)
    # What was pushed past the top comes back down, and pushes what is below it.
    ceiling = float(_HEIGHT - _TOP - _BOTTOM) + 8
    for index in reversed(order):
        placed[index] = min(placed[index], ceiling - heights[index] / 2)
        ceiling = placed[index] - heights[index] / 2
    return placed


def _curves(chart: Curves) -> Figure:
    low, high = _extent(chart)
    scale = math.log10 if chart.log_y else float
    pixels = _HEIGHT - _TOP - _BOTTOM

    def height(value: float) -> float:
        clamped = min(max(value, low), high)
        return (scale(clamped) - scale(low)) / (scale(high) - scale(low)) * pixels

    traces: list[Figure] = []
    ends: list[tuple[float, float, str, int]] = []
    for line in chart.series:
        if line.low is not None and line.high is not None:
            edge: Figure = {"x": _numbers(line.x), "mode": "lines", "line": {"width": 0}, "hoverinfo": "skip"}
            traces.append(edge | {"y": _numbers(line.low), "meta": {"color": line.color}})
            band = {"fill": "tonexty", "meta": {"color": line.color, "band": True}}
            traces.append(edge | {"y": _numbers(line.high)} | band)
        traces.append(
            {
                "x": _numbers(line.x),
                "y": _numbers(line.y),
                "name": escape(line.label),
                "mode": "lines+markers" if line.markers else "lines",
                "line": {"width": 2.5, "dash": line.dash},
                "marker": {"size": 7},
                "meta": {"color": line.color},
                "hovertemplate": f"%{{x:.4~g}}: %{{y:.4~g}}<extra>{escape(line.label)}</extra>",
            }
        )
        points = [(x, y) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)]
        if points:
            ends.append((*points[-1], line.label, line.color))
    texts = ["<br>".join(map(escape, textwrap.wrap(label, _LABEL_WIDTH))) for _, _, label, _ in ends]
    heights = [_LINE_HEIGHT * (text.count("<br>") + 1) + 2 for text in texts]
    wanted = [height(y) for _, y, _, _ in ends]
    annotations = [
        {
            "x": math.log10(x) if chart.log_x else x,
            "y": scale(min(max(y, low), high)),
            "text": text,
            "xanchor": "left",
            "yanchor": "middle",
            "align": "left",
            "xshift": 6,
            "yshift": place - start,
            "showarrow": False,
            "meta": color,
        }
        for (x, y, _, color), text, start, place in zip(ends, texts, wanted, _spread(wanted, heights), strict=True)
    ]
    longest = max((len(part) for text in texts for part in text.split("<br>")), default=0)
    # The vertical axis is named above it, level: turned by 90 degrees, a full name would not fit a telephone.
    annotations.append(
        {
            "x": 0,
            "xref": "paper",
            "y": 1,
            "yref": "paper",
            "text": escape(chart.y_label),
            "xanchor": "left",
            "yanchor": "bottom",
            "xshift": -_LEFT + 8,
            "yshift": 8,
            "showarrow": False,
            "meta": -1,
        }
    )
    x_axis, y_axis = _axis(chart.x_label, chart.log_x), _axis("", chart.log_y)
    y_axis["range"] = [scale(low), scale(high)]
    x_values = [math.log10(x) if chart.log_x else x for line in chart.series for x in line.x]
    reach = 0.02 * (max(x_values) - min(x_values)) or 0.5
    # Stated, because plotly would make room inside the plot for the labels that stand in its margin.
    x_axis["range"] = [min(x_values) - reach, max(x_values) + reach]
    if chart.x_ticks is not None:
        x_axis |= {"tickvals": list(chart.x_ticks), "ticktext": [f"{tick:g}" for tick in chart.x_ticks]}
    margin = {"l": _LEFT, "r": 14 + 7 * longest, "t": _TOP, "b": _BOTTOM}
    layout = {"height": _HEIGHT, "margin": margin, "xaxis": x_axis, "yaxis": y_axis, "annotations": annotations}
    return {"data": traces, "layout": layout}


def _intervals(chart: Intervals) -> Figure:
    count = len(chart.rows)
    positions = [count - index for index in range(count)]
    traces: list[Figure] = [
        {
            "x": [row.estimate],
            "y": [position],
            "error_x": {
                "type": "data",
                "symmetric": False,
                "array": _numbers([row.high - row.estimate]),
                "arrayminus": _numbers([row.estimate - row.low]),
                "thickness": 2.5,
            },
            "mode": "markers",
            "marker": {"size": 10},
            "meta": {"color": row.color},
            "hovertemplate": f"{row.estimate:.3g} ({row.low:.3g} to {row.high:.3g})<extra></extra>",
        }
        for row, position in zip(chart.rows, positions, strict=True)
    ]
    # Each row's name stands above its interval: beside it, it would take half of a telephone's width.
    annotations: list[Figure] = [
        {
            "x": 0,
            "xref": "paper",
            "y": position + 0.36,
            "text": f"{escape(row.label)}: <b>{row.estimate:.3g}</b>",
            "xanchor": "left",
            "showarrow": False,
            "meta": -1,
        }
        for row, position in zip(chart.rows, positions, strict=True)
    ]
    at = math.log10(chart.reference) if chart.log_x else chart.reference
    annotations.append(
        {
            "x": at,
            "y": 0.35,
            "text": escape(chart.reference_label),
            "xanchor": "left",
            "xshift": 4,
            "showarrow": False,
            "meta": 0,
        }
    )
    line = {
        "type": "line",
        "x0": chart.reference,
        "x1": chart.reference,
        "y0": 0.1,
        "y1": count + 0.6,
        "line": {"dash": "dot", "width": 1.5},
    }
    values = [value for row in chart.rows for value in (row.low, row.high, row.estimate)] + [chart.reference]
    finite = [value for value in values if math.isfinite(value) and (value > 0 or not chart.log_x)]
    x_axis = _axis(chart.x_label, False)
    if chart.log_x:
        x_axis |= {"type": "log", "range": [math.log10(min(finite) / 1.25), math.log10(max(finite) * 1.25)]}
        x_axis |= _ratio_ticks(min(finite), max(finite))
    layout = {
        "height": 80 + 46 * count,
        "margin": {"l": 14, "r": 14, "t": 8, "b": _BOTTOM},
        "xaxis": x_axis,
        "yaxis": {"visible": False, "range": [0.1, count + 0.75], "fixedrange": True},
        "annotations": annotations,
        "shapes": [line],
    }
    return {"data": traces, "layout": layout}


def _ratio_ticks(low: float, high: float) -> Figure:
    """Ticks at 1, 2 and 5 of each decade, written out: a ratio's axis rarely spans one decade."""
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    ticks = [step * 10.0**decade for decade in decades for step in (1, 2, 5)]
    return {"tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}
