"""The HTML page that the commands share: charts, formulas, tables and text in one self-contained file.

Only :func:`render` needs plotly (for its bundled JavaScript) and latex2mathml; describing a page does not.
"""

from .block import Block, Code, Formula, Heading, Link, Section, Table
from .chart import Chart, Contours, Curves, Figure, Intervals, Panels, Row, Series
from .number import spoken
from .page import render

__all__ = [
    "Block",
    "Chart",
    "Code",
    "Contours",
    "Curves",
    "Figure",
    "Formula",
    "Heading",
    "Intervals",
    "Link",
    "Panels",
    "Row",
    "Section",
    "Series",
    "Table",
    "render",
    "spoken",
]
