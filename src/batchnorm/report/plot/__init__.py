"""From a described chart to the figure that plotly.js draws, as plain dictionaries.

Plotly reads a little HTML in its texts, so names are escaped here as well. Colours are left as indices
(``meta``): the page's script fills them in for light, dark and print. The axes' names are not plotly's: the page
writes them around the chart, where they wrap on a telephone.
"""

from __future__ import annotations

from ..chart import Chart, Contours, Intervals
from .axes import Drawing
from .contours import contours
from .curves import curves
from .intervals import intervals

__all__ = ["Drawing", "alike", "figure"]

_PAPER = 220  # pixels of a chart's height in print, where a page has room for three with their text
_PAPER_SURFACE = 290  # … and of a surface's, which is about as wide as high


def figure(chart: Chart) -> Drawing:
    """Gives ``{"data": ..., "layout": ..., "paper": ...}`` for a chart; the last is its layout in print."""
    if isinstance(chart, Intervals):
        drawing = intervals(chart)
        return drawing | {"paper": drawing["layout"]}
    if isinstance(chart, Contours):
        drawing = contours(chart)
        return drawing | {"paper": drawing["layout"] | {"height": _PAPER_SURFACE}}
    return curves(chart) | {"paper": curves(chart, _PAPER)["layout"]}


def alike(drawings: list[Drawing]) -> list[Drawing]:
    """Gives figures the same margins and height: what is compared must differ in its data alone."""
    found = [dict(drawing) for drawing in drawings]
    for name in ("layout", "paper"):
        margins = [drawing[name]["margin"] for drawing in drawings]
        margin = {side: max(each[side] for each in margins) for side in "lrtb"} if margins else {}
        height = max((drawing[name]["height"] for drawing in drawings), default=0)
        for drawing in found:
            drawing[name] = drawing[name] | {"margin": margin, "height": height}
    return found
