"""The HTML page that the commands share: charts, tables and text in one self-contained file.

Only :func:`render` needs plotly (for its bundled JavaScript); describing a chart does not.
"""

from .chart import Chart, Curves, Intervals, Row, Series
from .page import Section, Table, render

__all__ = ["Chart", "Curves", "Intervals", "Row", "Section", "Series", "Table", "render"]
