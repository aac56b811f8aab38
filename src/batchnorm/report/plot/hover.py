"""What a reader sees beside the pointer: the point's numbers with the names of their axes."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator
from itertools import pairwise

from ..chart import Series
from ..number import spoken
from ..written import escape
from .axes import Drawing, numbers

__all__ = ["bars", "hover", "named"]

_LONGEST = 40  # characters of an axis' name; the whole one stands beside the axis
_FIGURES = 4
_NAME = 60  # characters of a point's name; its end tells it from others


def named(axis: str) -> str:
    """Gives the start of a line that tells a number on that axis."""
    return f"{escape(textwrap.shorten(axis, _LONGEST, placeholder=' …'))}: " if axis.strip() else ""


def hover(series: Series, x_label: str, y_label: str) -> Drawing:
    """Gives the part of a trace that tells its points; a line without a name is a helper and tells nothing.

    Of a straight line across the plot only the number that it marks is told: its ends are where the plot ends.
    """
    if not series.label.strip():
        return {"hoverinfo": "skip"}
    lines = [f"{named(x_label)}%{{customdata[0]}}", f"{named(y_label)}%{{customdata[1]}}"]
    if len(series.x) == 2 and series.line:
        lines = lines[:1] if series.x[0] == series.x[1] else lines[1:] if series.y[0] == series.y[1] else lines
    told = [[_told(x), _told(y)] for x, y in zip(series.x, series.y, strict=True)]
    if series.names:
        lines.insert(0, "%{customdata[2]}")
        told = [[*numbers, _ending(name)] for numbers, name in zip(told, series.names, strict=True)]
    return {"customdata": told, "hovertemplate": _template(lines, series.label)}


def _ending(name: str) -> str:
    return escape(name if len(name) <= _NAME else f"… {name[-_NAME:]}")


def bars(series: Series, x_label: str, y_label: str) -> Iterator[Drawing]:
    """Gives the points, not to be seen, at which a histogram tells its bars: the line itself only has their edges."""
    edges = [(low, high, y) for (low, high), y in zip(pairwise(series.x), series.y, strict=False) if math.isfinite(y)]
    if not edges:
        return
    lines = [f"{named(x_label)}%{{customdata[0]}}", f"{named(y_label)}%{{customdata[1]}}"]
    yield {
        "type": "scatter",
        "x": numbers((low + high) / 2 for low, high, _ in edges),
        "y": numbers(y for _, _, y in edges),
        "mode": "markers",
        "marker": {"size": 6, "opacity": 0},
        "customdata": [[f"{_told(low)} to {_told(high)}", _told(y)] for low, high, y in edges],
        "hovertemplate": _template(lines, series.label),
        "meta": {"color": series.color},
    }


def _told(value: float) -> str:
    return "" if math.isnan(value) else spoken(value, _FIGURES)


def _template(lines: list[str], label: str) -> str:
    return f"{'<br>'.join(lines)}<extra>{escape(label)}</extra>"
