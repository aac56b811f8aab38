"""From a described small picture to SVG: whole numbers and steps from point to point, so that it stays short."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

from ..chart import Series
from ..small import Small

__all__ = ["svg"]

# Steps of the drawing's own grid, finer than the pixels of a picture that was made large.
_WIDE, _HIGH = 600, 300


def svg(small: Small) -> str:
    """Gives the drawing. It is stretched to whatever size it is shown in; strokes and points are not."""
    paths = "".join(_paths(series, small) for series in small.series)
    # Hidden from those who hear the page: the place around it has the words.
    return f'<svg viewBox="0 0 {_WIDE} {_HIGH}" preserveAspectRatio="none" aria-hidden="true">{paths}</svg>'


def _paths(series: Series, small: Small) -> str:
    stretches = list(_stretches(series, small))
    color = f"c{series.color}"
    if not series.line:
        dots = "".join(f"M{x} {y}h0" for stretch in stretches for x, y in stretch)
        return _path(f"dots {color}", dots)
    step = series.shape == "step"
    drawn = "".join(_line(stretch, step) for stretch in stretches)
    dash = "" if series.dash == "solid" else f" {series.dash}"
    area = ""
    if series.fill:
        floor = _place(0.0, small.y_range, _HIGH, turned=True)
        area = "".join(f"{_line(stretch, step)}V{floor}H{stretch[0][0]}z" for stretch in stretches)
    return _path(f"area {color}", area) + _path(f"{color}{dash}", drawn)


def _path(kind: str, d: str) -> str:
    return f'<path class="{kind}" d="{d}"/>' if d else ""


def _stretches(series: Series, small: Small) -> Iterator[list[tuple[int, int]]]:
    """Points between which there is no gap."""
    stretch: list[tuple[int, int]] = []
    for x, y in zip(series.x, series.y, strict=True):
        if math.isnan(x) or math.isnan(y):
            if stretch:
                yield stretch
            stretch = []
        else:
            stretch.append((_place(x, small.x_range, _WIDE), _place(y, small.y_range, _HIGH, turned=True)))
    if stretch:
        yield stretch


def _place(value: float, ends: tuple[float, float], size: int, *, turned: bool = False) -> int:
    low, high = ends
    share = min(max((value - low) / (high - low), 0.0), 1.0) if math.isfinite(value) else float(value > 0)
    return round(size * (1 - share if turned else share))


def _line(points: Sequence[tuple[int, int]], step: bool) -> str:
    written = [f"M{points[0][0]} {points[0][1]}"]
    for (x, y), (next_x, next_y) in pairwise(points):
        if step:
            written.append((f"h{next_x - x}" if next_x != x else "") + (f"v{next_y - y}" if next_y != y else ""))
        else:
            written.append(f"l{next_x - x} {next_y - y}")
    return "".join(written)
