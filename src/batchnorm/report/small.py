"""Pictures as small as a few words, as plain data: dozens of them stand in the rows of a list, and grow when asked to.

They are drawn as SVG while the page is made, without plotly: hundreds of them cost a browser nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .chart import Series

__all__ = ["Small"]


@dataclass(frozen=True)
class Small:
    """A small picture.

    Args:
        title: What it shows, in a word or three.
        words: The same in a sentence with its numbers, for readers who hear the page.
        series: The lines, drawn in order; one with neither ``line`` nor a label is of points alone. What lies beyond
            the ranges is drawn at their edge.
        x_range: Leftmost and rightmost value.
        y_range: Lowest and highest value.
        x_ends: What is written below its left and its right end.
        y_ends: What is written at its lowest and its highest point, where it is large.
        x_label: What is written below its middle, where it is large.
        caption: Its most telling numbers, below it: a line each.
        empty: Why there is nothing to draw; it stands in the picture's place.
    """

    title: str
    words: str
    series: Sequence[Series] = ()
    x_range: tuple[float, float] = (0.0, 1.0)
    y_range: tuple[float, float] = (0.0, 1.0)
    x_ends: tuple[str, str] = ("", "")
    y_ends: tuple[str, str] = ("", "")
    x_label: str = ""
    caption: Sequence[str] = ()
    empty: str = ""
