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


def figure(chart: Chart) -> Drawing:
    """Gives ``{"data": ..., "layout": ...}`` for a chart."""
    if isinstance(chart, Intervals):
        return intervals(chart)
    return contours(chart) if isinstance(chart, Contours) else curves(chart)


def alike(drawings: list[Drawing]) -> list[Drawing]:
    """Gives figures the same margins and height: what is compared must differ in its data alone."""
    margins = [drawing["layout"]["margin"] for drawing in drawings]
    margin = {side: max(each[side] for each in margins) for side in "lrtb"} if margins else {}
    height = max((drawing["layout"]["height"] for drawing in drawings), default=0)
    return [drawing | {"layout": drawing["layout"] | {"margin": margin, "height": height}} for drawing in drawings]
