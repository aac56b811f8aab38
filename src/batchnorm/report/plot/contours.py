"""A surface by lines of equal height, with paths on it.

The heights are drawn on a scale on which the chosen levels are the whole numbers: plotly spaces its lines
evenly, and the levels of a valley are not even. Low ground is tinted most, so a valley looks like one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

from ..chart import Contours, Series
from ..number import spoken
from .axes import LEFT, Axis, Drawing, numbers
from .curves import line
from .hover import hover
from .labels import wrapped
from .symbols import symbols

__all__ = ["contours", "rank"]

_HEIGHT, _TOP, _BOTTOM = 340, 10, 34
_APART = 0.11  # shares of the plot's side between two heights that are written
_CLEAR = 0.07  # … and between a height and a path
_EDGE = 0.05
_NAME_WIDTH = 18
_NARROW = 290  # pixels of the plot's width where it is narrow
_GAP = 9  # pixels between a point and its name
# Where a name may stand beside its point: across and up. Earlier ones are preferred.
_SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))


def contours(chart: Contours) -> Drawing:
    """Gives the figure of a surface with its paths."""
    x_axis = Axis(min(chart.x), max(chart.x))
    y_axis = Axis(min(chart.y), max(chart.y))
    highest = len(chart.levels) - 1
    surface: Drawing = {
        "type": "contour",
        "x": numbers(chart.x),
        "y": numbers(chart.y),
        "z": [[_rounded(rank(value, chart.levels)) for value in row] for row in chart.z],
        "contours": {"coloring": "fill", "start": 0, "end": highest, "size": 1, "showlines": True},
        "autocontour": False,
        "zmin": -1,
        "zmax": max(highest, 0) + 1,
        "line": {"width": 1, "smoothing": 1},
        "showscale": False,
        "hoverinfo": "skip",
        "meta": {"color": 1, "surface": True},
    }
    traces = [surface]
    for path, mark in zip(chart.paths, symbols(chart.paths), strict=True):
        trace = line(path, mark) | hover(path, chart.x_label, chart.y_label)
        trace["mode"] = "lines+markers" if path.line else "markers"
        trace["marker"] = {"size": 6, "symbol": mark.name}
        trace["line"]["width"] = 2
        trace["meta"] |= {"edge": True}
        traces.append(trace)
    annotations = [*_heights(chart, x_axis, y_axis), *_names(chart.paths, x_axis, y_axis)]
    layout = {
        "height": _HEIGHT,
        "margin": {"l": LEFT, "r": 10, "t": _TOP, "b": _BOTTOM},
        "xaxis": x_axis.layout() | {"showgrid": False, "nticks": 6},
        "yaxis": y_axis.layout() | {"showgrid": False, "nticks": 6, "automargin": "left"},
        "annotations": annotations,
    }
    return {"data": traces, "layout": layout}


def rank(value: float, levels: Sequence[float]) -> float:
    """Where a height is among the levels: k at level k, between two levels in proportion.

    >>> [rank(height, [1, 10, 100]) for height in (1, 55, 100, 190)]
    [0.0, 1.5, 2.0, 3.0]
    """
    if not math.isfinite(value) or not levels:
        return math.nan
    if len(levels) == 1:
        return math.copysign(min(abs(value - levels[0]), 1.0), value - levels[0])
    place = 0
    while place < len(levels) - 2 and value > levels[place + 1]:
        place += 1
    low, high = levels[place], levels[place + 1]
    # Beyond the last level the tint stays: one step more says no more.
    return min(max(place + (value - low) / (high - low), -1.0), float(len(levels)))


def _rounded(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None


def _heights(chart: Contours, x_axis: Axis, y_axis: Axis) -> list[Drawing]:
    """Writes heights on their lines, along the way from the lowest point that has room for most of them."""
    trodden = [
        (x_axis.share(x), y_axis.share(y))
        for path in chart.paths
        for x, y in _between(path)
        if math.isfinite(x) and math.isfinite(y)
    ]
    ways = [_along(chart, across, up) for across in (-1, 0, 1) for up in (-1, 0, 1) if across or up]
    best: list[tuple[float, float, float]] = []
    for way in ways:
        kept: list[tuple[float, float, float]] = []
        last: tuple[float, float] | None = None
        for level, x, y in way:
            x_share, y_share = x_axis.share(x), y_axis.share(y)
            margins = min(x_share, 1 - x_share, y_share, 1 - y_share)
            near = min((math.hypot(x_share - a, y_share - b) for a, b in trodden), default=1.0)
            apart = 1.0 if last is None else math.hypot(x_share - last[0], y_share - last[1])
            if margins >= _EDGE and near >= _CLEAR and apart >= _APART:
                kept.append((level, x, y))
                last = x_share, y_share
        if len(kept) > len(best):
            best = kept
    return [
        {
            "x": x,
            "y": y,
            "text": spoken(level),
            "showarrow": False,
            "meta": {"color": 1, "small": True},
        }
        for level, x, y in best
    ]


def _between(path: Series) -> Iterator[tuple[float, float]]:
    """Points of a path and the middles between them: its line is to be kept clear as well."""
    points = list(zip(path.x, path.y, strict=True))
    yield from points
    for (x, y), (next_x, next_y) in pairwise(points):
        yield (x + next_x) / 2, (y + next_y) / 2


def _along(chart: Contours, across: int, up: int) -> Iterator[tuple[float, float, float]]:
    """Levels and where they are met on the straight way from the lowest point to an edge."""
    rows, columns = len(chart.y), len(chart.x)
    places = ((value, row, column) for row, line_of in enumerate(chart.z) for column, value in enumerate(line_of))
    lowest = min((place for place in places if math.isfinite(place[0])), default=None)
    if lowest is None:
        return
    _, row, column = lowest
    to_edge = [(columns - 1 - column if across > 0 else column)] * bool(across)
    to_edge += [(rows - 1 - row if up > 0 else row)] * bool(up)
    if min(to_edge) == 0:
        return
    # A way to the corner climbs both sides of the grid in proportion.
    across_end = column + across * (columns - 1 - column if across > 0 else column)
    up_end = row + up * (rows - 1 - row if up > 0 else row)
    count = max(abs(across_end - column), abs(up_end - row))
    way = []
    for step in range(count + 1):
        at_column = round(column + (across_end - column) * step / count)
        at_row = round(row + (up_end - row) * step / count)
        way.append((chart.x[at_column], chart.y[at_row], chart.z[at_row][at_column]))
    for (x, y, z), (next_x, next_y, next_z) in pairwise(way):
        for level in chart.levels:
            if z < level <= next_z:
                part = (level - z) / (next_z - z)
                yield level, x + part * (next_x - x), y + part * (next_y - y)


def _names(paths: Sequence[Series], x_axis: Axis, y_axis: Axis) -> list[Drawing]:
    """Names each path where it is farthest from the others, beside it and on none of them."""
    points = [
        [
            (x_axis.share(x), y_axis.share(y), x, y)
            for x, y in zip(path.x, path.y, strict=True)
            if x_axis.low <= x <= x_axis.high and y_axis.low <= y <= y_axis.high
        ]
        for path in paths
    ]
    taken = [
        (before[0] + part / 8 * (after[0] - before[0]), before[1] + part / 8 * (after[1] - before[1]))
        for each in points
        for before, after in pairwise(each)
        for part in range(9)
    ]
    found: list[Drawing] = []
    for number, path in enumerate(paths):
        if not path.label.strip() or not points[number]:
            continue
        others = [point for other, each in enumerate(points) if other != number for point in each]
        # Where all are alike, as with one path alone, its first point.
        alone = [min((math.hypot(p[0] - q[0], p[1] - q[1]) for q in others), default=0.0) for p in points[number]]
        along, up, x, y = points[number][alone.index(max(alone))]
        text = wrapped(path.label, _NAME_WIDTH)
        parts = text.split("<br>")
        width, height = 7 * max(map(len, parts)) / _NARROW, 16 * len(parts) / _HEIGHT
        side = min(_SIDES, key=lambda side: _hidden(side, along, up, width, height, taken))
        left, bottom = _corner(side, along, up, width, height)
        taken += [(left + width * a / 6, bottom + height * b / 2) for a in range(7) for b in range(3)]
        across, above = side
        found.append(
            {
                "x": x,
                "y": y,
                "text": text,
                "xanchor": ("right", "center", "left")[across + 1],
                "yanchor": ("top", "middle", "bottom")[above + 1],
                "xshift": _GAP * across,
                "yshift": _GAP * above,
                "showarrow": False,
                "meta": {"color": path.color},
            }
        )
    return found


def _corner(side: tuple[int, int], along: float, up: float, width: float, height: float) -> tuple[float, float]:
    """The lower left corner of a name beside a point, in shares of the plot's sides."""
    across, above = side
    left = along + across * _GAP / _NARROW + (across - 1) / 2 * width
    return left, up + above * _GAP / _HEIGHT + (above - 1) / 2 * height


def _hidden(
    side: tuple[int, int], along: float, up: float, width: float, height: float, taken: Sequence[tuple[float, float]]
) -> float:
    """How much a name would hide there; out of the plot is worse than any."""
    left, bottom = _corner(side, along, up, width, height)
    left, bottom, right, top = left - 0.02, bottom - 0.02, left + width, bottom + height + 0.02
    out = max(0.0, -left, -bottom, right - 1, top - 1)
    return 1e6 * out + sum(left <= x <= right and bottom <= y <= top for x, y in taken)
