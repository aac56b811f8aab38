"""Estimates with intervals, one a row."""

from __future__ import annotations

import math

from ..chart import Intervals
from ..number import spoken
from .axes import Drawing, fit
from .hover import named
from .labels import LINE_HEIGHT, wrapped

__all__ = ["intervals"]

_ROW, _TOP, _BOTTOM = 30, 6, 34  # pixels
_FOOT = 26  # pixels of the line that says what the reference is
_CLEAR = 4  # pixels between a name and the line below it
_REFERENCE_WIDTH = 22
_WIDTH = 38  # characters of a row's name in a line, on a telephone


def intervals(chart: Intervals) -> Drawing:
    """Gives the figure of estimates beside a reference; the vertical axis counts pixels."""
    values = [value for row in chart.rows for value in (row.low, row.high, row.estimate)]
    axis = fit([*values, chart.reference], chart.log_x)
    names = [f"{wrapped(row.label, _WIDTH)}: <b>{spoken(row.estimate)}</b>" for row in chart.rows]
    spaces = [_ROW + LINE_HEIGHT * (name.count("<br>") + 1) for name in names]
    reference = wrapped(chart.reference_label, _REFERENCE_WIDTH)
    height = sum(spaces) + _FOOT + LINE_HEIGHT * reference.count("<br>")
    traces: list[Drawing] = []
    annotations: list[Drawing] = []
    # The reference is drawn beside the intervals alone: through the names, it would make them hard to read.
    spans: list[tuple[float, float]] = []
    top = height
    for row, name, space in zip(chart.rows, names, spaces, strict=True):
        # Each row's name stands above its interval: beside it, it would take half of a telephone's width.
        annotations.append(
            {
                "x": 0,
                "xref": "paper",
                "y": top - 2,
                "text": name,
                "xanchor": "left",
                "yanchor": "top",
                "align": "left",
                "showarrow": False,
                "meta": {"color": -1},
            }
        )
        top -= space
        spans.append((top, top + _ROW - _CLEAR))
        # An interval without end reaches the axis' end, and a row without a number has its name alone.
        low, high, estimate = axis.hold(row.low), axis.hold(row.high), axis.hold(row.estimate)
        if math.isnan(row.estimate):
            continue
        traces.append(
            {
                "type": "scatter",
                "x": [estimate],
                "y": [top + 16],
                "error_x": {
                    "type": "data",
                    "symmetric": False,
                    "array": [high - estimate if math.isfinite(high) else 0],
                    "arrayminus": [estimate - low if math.isfinite(low) else 0],
                    "thickness": 2.5,
                    "width": 5,
                },
                "mode": "markers",
                "marker": {"size": 10},
                "meta": {"color": row.color},
                "hovertemplate": f"{named(chart.x_label)}{spoken(row.estimate)}<br>"
                f"interval: {spoken(row.low)} to {spoken(row.high)}<extra></extra>",
            }
        )
    right = axis.share(chart.reference) > 0.55
    annotations.append(
        {
            "x": axis.at(chart.reference),
            "y": 3,
            "text": reference,
            "align": "right" if right else "left",
            "xanchor": "right" if right else "left",
            "yanchor": "bottom",
            "xshift": -5 if right else 5,
            "showarrow": False,
            "meta": {"color": 0},
        }
    )
    # Below the last interval it goes on to its own name.
    spans[-1:] = [(0, spans[-1][1] if spans else height)]
    lines = [
        {
            "type": "line",
            "x0": chart.reference,
            "x1": chart.reference,
            "y0": low,
            "y1": high,
            "layer": "below",
            "line": {"dash": "dot", "width": 1.5},
        }
        for low, high in spans
    ]
    layout = {
        "height": round(height) + _TOP + _BOTTOM,
        "margin": {"l": 14, "r": 14, "t": _TOP, "b": _BOTTOM},
        "xaxis": axis.layout(),
        "yaxis": {"visible": False, "range": [0, height], "fixedrange": True},
        "annotations": annotations,
        "shapes": lines,
    }
    return {"data": traces, "layout": layout}
