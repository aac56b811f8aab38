"""The HTML page that the commands share: charts, formulas, tables and text in one self-contained file.

Only :func:`render` needs plotly (for its bundled JavaScript) and latex2mathml; describing a page does not.
"""

from .block import Block, Code, Counts, Entries, Entry, Fold, Formula, Heading, Line, Lines, Link, Section, Table
from .chart import Chart, Contours, Curves, Figure, Intervals, Panels, Picture, Pictures, Row, Series
from .number import spoken
from .page import render
from .small import Small
from .static import picture, save_picture

__all__ = [
    "Block",
    "Chart",
    "Code",
    "Contours",
    "Counts",
    "Curves",
    "Entries",
    "Entry",
    "Figure",
    "Fold",
    "Formula",
    "Heading",
    "Intervals",
    "Line",
    "Lines",
    "Link",
    "Panels",
    "Picture",
    "Pictures",
    "Row",
    "Section",
    "Series",
    "Small",
    "Table",
    "picture",
    "render",
    "save_picture",
    "spoken",
]
