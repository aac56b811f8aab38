"""A whole figure on a sheet: its title, its charts or images with the names of their axes, and its notes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..chart import Chart, Contours, Figure, Intervals, Panels, Pictures
from ..images import pixels
from ..plot import Drawing, alike, figure
from .draw import INK, SOFT, draw
from .text import wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Sheet

__all__ = ["WIDTH", "sheet"]

#: Pixels across, of the size that the page's texts have.
WIDTH = 800

_RIM, _GAP = 22.0, 26.0
_TITLE, _NAME, _AXIS, _NOTE = 17.0, 14.0, 12.0, 12.0  # sizes of letters
_LINE = 1.35
_ROOM = 40  # pixels to the right of a plot from which on names stand there


@dataclass(frozen=True)
class _Text:
    x: float
    top: float
    text: str
    size: float
    color: str
    bold: bool
    middle: bool


class _Page:
    """What stands where, in pixels from the upper left corner, before the sheet's height is known."""

    def __init__(self) -> None:
        self.texts: list[_Text] = []
        self.charts: list[tuple[tuple[float, float, float], Drawing]] = []
        self.images: list[tuple[tuple[float, float, float], npt.NDArray[np.uint8]]] = []

    def text(
        self,
        place: tuple[float, float, float],
        text: str,
        size: float,
        color: str = SOFT,
        *,
        bold: bool = False,
        middle: bool = False,
    ) -> float:
        """Puts text at a left edge and a top, so wide; gives how high it is."""
        if not text:
            return 0.0
        left, top, width = place
        lines = wrapped(text, width, size, bold=bold)
        self.texts.append(_Text(left + width / 2 if middle else left, top, lines, size, color, bold, middle))
        return _LINE * size * (lines.count("\n") + 1) + 4


def sheet(shown: Figure) -> Sheet:
    """Gives the sheet, as matplotlib has it: one pixel of the page is a point of it."""
    page = _Page()
    inner = WIDTH - 2 * _RIM
    top = _RIM + page.text((_RIM, _RIM, inner), shown.title, _TITLE, INK, bold=True) + 4
    if isinstance(shown, Pictures):
        top = _images(page, shown, top, inner)
    elif isinstance(shown, Panels):
        top = _panels(page, shown.charts, top, inner)
    else:
        top = _chart(page, shown, figure(shown), _RIM, top, inner)
    note = shown.note if isinstance(shown, Panels | Pictures) else ""
    top += page.text((_RIM, top, inner), note, _NOTE)
    return _drawn(page, top + _RIM - 4)


def _panels(page: _Page, charts: Sequence[Chart], top: float, inner: float) -> float:
    drawings = alike([figure(chart) for chart in charts])
    # As on the page: three fit in a row unless names stand to the right of their lines.
    narrow = len(drawings) == 3 and all(drawing["layout"]["margin"]["r"] < _ROOM for drawing in drawings)
    across = 3 if narrow else min(2, len(drawings))
    width = (inner - _GAP * (across - 1)) / across
    for start in range(0, len(charts), across):
        row = list(zip(charts, drawings, strict=True))[start : start + across]
        lefts = [_RIM + place * (width + _GAP) for place in range(len(row))]
        # What is side by side begins at the same height: names and axes' names may need different numbers of lines.
        names = [
            page.text((x, top, width), c.title, _NAME, INK, bold=True) for x, (c, _) in zip(lefts, row, strict=True)
        ]
        below = top + max(names)
        axes = [_above(page, c, x, below, width) for x, (c, _) in zip(lefts, row, strict=True)]
        start_at = below + max(axes)
        ends = [_below(page, c, d, x, start_at, width) for x, (c, d) in zip(lefts, row, strict=True)]
        top = max(ends) + 12
    return top


def _chart(page: _Page, chart: Chart, drawing: Drawing, left: float, top: float, width: float) -> float:
    top += _above(page, chart, left, top, width)
    return _below(page, chart, drawing, left, top, width)


def _above(page: _Page, chart: Chart, left: float, top: float, width: float) -> float:
    return 0.0 if isinstance(chart, Intervals) else page.text((left, top, width), chart.y_label, _AXIS)


def _below(page: _Page, chart: Chart, drawing: Drawing, left: float, top: float, width: float) -> float:
    page.charts.append(((left, top, width), drawing))
    top += float(drawing["layout"]["height"])
    top += page.text((left, top, width), chart.x_label, _AXIS, middle=True) + 4
    # As on the page: a surface has a third axis, whose numbers stand on its lines.
    note = f"Numbers on the lines: {chart.z_label}. {chart.note}" if isinstance(chart, Contours) else chart.note
    return top + page.text((left, top, width), note, _NOTE)


def _images(page: _Page, shown: Pictures, top: float, inner: float) -> float:
    across = max((len(row) for row in shown.rows), default=1) or 1
    width = min(320.0, (inner - 14 * (across - 1)) / across)
    for row in shown.rows:
        heights = []
        for place, image in enumerate(row):
            left = _RIM + place * (width + 14)
            values = pixels(image)
            height = width * values.shape[0] / values.shape[1]
            page.images.append(((left, top, width), values))
            heights.append(height + 4 + page.text((left, top + height + 4, width), image.label, _NOTE))
        top += max(heights, default=0.0) + 8
    return top


def _drawn(page: _Page, height: float) -> Sheet:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - a tool, and slow to import
    from matplotlib.figure import Figure as Sheet  # noqa: PLC0415

    found = Sheet(figsize=(WIDTH / 72, height / 72), dpi=72)
    FigureCanvasAgg(found)
    for text in page.texts:
        found.text(
            text.x / WIDTH,
            1 - text.top / height,
            text.text,
            fontsize=text.size,
            color=text.color,
            fontweight="bold" if text.bold else "normal",
            ha="center" if text.middle else "left",
            va="top",
            linespacing=_LINE,
        )
    for place, drawing in page.charts:
        draw(found, drawing, place, (WIDTH, height))
    for (left, top, width), values in page.images:
        tall = width * values.shape[0] / values.shape[1]
        axes = found.add_axes((left / WIDTH, 1 - (top + tall) / height, width / WIDTH, tall / height))
        axes.set_axis_off()
        shown = values if values.shape[2] > 1 else values[:, :, 0]
        axes.imshow(shown, cmap="gray", vmin=0, vmax=255, interpolation="none", aspect="auto")
    return found
