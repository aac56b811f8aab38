"""The HTML page that the commands share: charts, formulas, tables and text in one self-contained file.

Only :func:`render` needs plotly (for its bundled JavaScript) and latex2mathml; describing a page does not.
"""

from .block import Block, Code, Entries, Entry, Fold, Formula, Heading, Link, Section, Table
from .chart import Chart, Contours, Curves, Figure, Intervals, Panels, Picture, Pictures, Row, Series
from .number import spoken
from .page import render
from .small import Small

__all__ = [
    "Block",
    "Chart",
    "Code",
    "Contours",
    "Curves",
    "Entries",
    "Entry",
    "Figure",
    "Fold",
    "Formula",
    "Heading",
    "Intervals",
    "Link",
    "Panels",
    "Picture",
    "Pictures",
    "Row",
    "Section",
    "Series",
    "Small",
    "Table",
    "render",
    "spoken",
]
