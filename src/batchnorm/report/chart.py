"""Charts as plain data: what is drawn, with units, and no drawing library.

A claim or a rule describes its picture with these classes; :mod:`batchnorm.report.plot` turns them into what
plotly draws. So a pure function can return a picture, and a test can look at its numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["Chart", "Contours", "Curves", "Figure", "Intervals", "Panels", "Picture", "Pictures", "Row", "Series"]


@dataclass(frozen=True)
class Series:
    """One line of a chart, with its name written at its right end.

    Args:
        label: What the line is, in a few words; nothing is written where it is empty.
        x: Horizontal positions.
        y: Vertical positions; NaN leaves a gap.
        color: Index into the page's colour-blind-safe palette (0 is the neutral grey of a baseline).
        low: Lower edge of a band around the line.
        high: Upper edge of that band.
        dash: A stroke that tells the line apart without colour: "solid", "dash" or "dot".
        markers: Whether the points themselves are drawn.
        line: Whether they are joined by a line; without, the points alone are drawn.
        shape: "linear", or "step" for a histogram: each y holds from its x to the next.
        fill: Whether the area down to 0 is tinted.
        names: What each point is, told beside the pointer.
        links: Anchors on the page that its points lead to when they are pressed.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    color: int
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    dash: str = "solid"
    markers: bool = False
    line: bool = True
    shape: str = "linear"
    fill: bool = False
    names: Sequence[str] = ()
    links: Sequence[str] = ()


@dataclass(frozen=True)
class Curves:
    """Lines over a common axis.

    Args:
        title: What the reader should see in it, as a sentence.
        x_label: Name and unit of the horizontal axis.
        y_label: Name and unit of the vertical axis.
        series: The lines.
        log_x: Whether the horizontal axis is logarithmic.
        log_y: Whether the vertical axis is logarithmic.
        y_range: Lowest and highest value shown; None fits the data.
        x_range: Leftmost and rightmost value shown; None fits the data.
        x_ticks: Positions labelled on the horizontal axis; None leaves it to the plot.
        note: What the bands and marks are.
    """

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    log_x: bool = False
    log_y: bool = False
    y_range: tuple[float, float] | None = None
    x_range: tuple[float, float] | None = None
    x_ticks: Sequence[float] | None = None
    note: str = ""


@dataclass(frozen=True)
class Row:
    """One estimate with its interval."""

    label: str
    estimate: float
    low: float
    high: float
    color: int = 1


@dataclass(frozen=True)
class Intervals:
    """Estimates with intervals, one a row, beside the value that means "no effect".

    Args:
        title: What the reader should see in it, as a sentence.
        x_label: Name and unit of the axis.
        rows: The estimates, drawn from top to bottom.
        reference: Where a dotted line is drawn.
        reference_label: What that line means.
        log_x: Whether the axis is logarithmic, as it should be for ratios.
        note: What the intervals are.
    """

    title: str
    x_label: str
    rows: Sequence[Row]
    reference: float
    reference_label: str
    log_x: bool = False
    note: str = ""


@dataclass(frozen=True)
class Contours:
    """A surface over a plane by lines of equal height, with paths on it.

    Args:
        title: What the reader should see in it, as a sentence.
        x_label: Name and unit of the horizontal axis.
        y_label: Name and unit of the vertical axis.
        z_label: Name and unit of the height.
        x: Horizontal positions, ascending.
        y: Vertical positions, ascending.
        z: Heights, a row a vertical position.
        levels: Heights at which a line is drawn, ascending.
        paths: Lines on the surface, such as the steps of a descent; markers are drawn at their points.
        note: What the lines and marks are.
    """

    title: str
    x_label: str
    y_label: str
    z_label: str
    x: Sequence[float]
    y: Sequence[float]
    z: Sequence[Sequence[float]]
    levels: Sequence[float]
    paths: Sequence[Series] = ()
    note: str = ""


Chart: TypeAlias = Curves | Intervals | Contours


@dataclass(frozen=True)
class Panels:
    """Charts that are compared with each other: side by side, or one below the other where there is no room.

    Args:
        title: What the reader should see in them, as a sentence.
        charts: The charts; each has its own title, which says what is different about it.
        note: What is said once for all of them.
    """

    title: str
    charts: Sequence[Chart]
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """One image.

    Args:
        label: What it is, in a few words.
        pixels: Rows of pixels, each with 1 (grey) or 3 (red, green, blue) values from 0 (black) to 1; what lies
            outside is shown as black or full.
    """

    label: str
    pixels: Sequence[Sequence[Sequence[float]]]


@dataclass(frozen=True)
class Pictures:
    """Images side by side, all at one size and with sharp pixels.

    Args:
        title: What the reader should see in them, as a sentence.
        rows: Rows of images, from top to bottom, equally many in each.
        note: What is said once for all of them.
    """

    title: str
    rows: Sequence[Sequence[Picture]]
    note: str = ""


#: What a page shows as one figure.
Figure: TypeAlias = Chart | Panels | Pictures
