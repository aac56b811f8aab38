"""One self-contained HTML page: text, tables and charts, and nothing that is fetched from elsewhere.

Light and dark follow the reader's system, print is always light, and a telephone never scrolls sideways. All
text is escaped; the only markup is made here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from string import Template

from .chart import Chart
from .plot import figure
from .shell import PAGE, SCRIPT, STYLE

__all__ = ["Section", "Table", "render"]


@dataclass(frozen=True)
class Table:
    """A table of text; ``tones`` colours a row's first cell: "good", "bad", "open" or nothing."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    tones: Sequence[str] = ()
    links: Sequence[str] = ()


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it.

    Args:
        title: The heading.
        anchor: Its name in the page's address.
        badge: A word beside the heading, such as a verdict.
        tone: The badge's colour: "good", "bad", "open" or nothing.
        blocks: Paragraphs (text), pairs of a term and its explanation, tables and charts, in order.
    """

    title: str
    anchor: str = ""
    badge: str = ""
    tone: str = ""
    blocks: Sequence[str | tuple[str, str] | Table | Chart] = field(default_factory=tuple)


def render(title: str, lead: str, sections: Sequence[Section], *, footer: str = "") -> str:
    """Gives the whole page as text.

    Args:
        title: The page's title.
        lead: A paragraph under it.
        sections: What follows, in order.
        footer: The last line.

    Raises:
        ModuleNotFoundError: If plotly, which brings the script that draws, is not installed.
    """
    from plotly.offline import get_plotlyjs  # noqa: PLC0415 - only the page needs it, and it is large

    charts: list[dict[str, object]] = []
    body = "\n".join(_section(section, charts) for section in sections)
    return Template(PAGE).substitute(
        title=escape(title),
        lead=escape(lead),
        body=body,
        footer=escape(footer),
        style=STYLE,
        script=SCRIPT,
        plotly=get_plotlyjs(),
        # "<" is written as an escape so that no text can end the script element.
        charts=json.dumps(charts, allow_nan=False).replace("<", "\\u003c"),
    )


def _section(section: Section, charts: list[dict[str, object]]) -> str:
    badge = f' <span class="badge {escape(section.tone)}">{escape(section.badge)}</span>' if section.badge else ""
    anchor = f' id="{escape(section.anchor)}"' if section.anchor else ""
    parts = [f"<section{anchor}>", f"<h2>{escape(section.title)}{badge}</h2>"]
    open_list = False
    for block in section.blocks:
        if isinstance(block, tuple) != open_list:
            open_list = not open_list
            parts.append("<dl>" if open_list else "</dl>")
        if isinstance(block, tuple):
            parts.append(f"<dt>{escape(block[0])}</dt><dd>{escape(block[1])}</dd>")
        elif isinstance(block, str):
            parts.append(f"<p>{escape(block)}</p>")
        elif isinstance(block, Table):
            parts.append(_table(block))
        else:
            parts.append(_chart(block, charts))
    return "\n".join([*parts, "</dl>" if open_list else "", "</section>"])


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.header)
    rows = []
    for number, row in enumerate(table.rows):
        tone = table.tones[number] if number < len(table.tones) else ""
        link = table.links[number] if number < len(table.links) else ""
        cells = [
            f'<td data-label="{escape(label)}"><span>{escape(cell)}</span></td>'
            for label, cell in zip(table.header, row, strict=True)
        ]
        if link:
            inner = f'<a href="#{escape(link)}">{escape(row[0])}</a>'
            cells[0] = f'<td data-label="{escape(table.header[0])}"><span>{inner}</span></td>'
        if tone:
            inner = f'<span class="badge {escape(tone)}">{escape(row[1])}</span>'
            cells[1] = f'<td data-label="{escape(table.header[1])}">{inner}</td>'
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _chart(chart: Chart, charts: list[dict[str, object]]) -> str:
    number = len(charts)
    charts.append(figure(chart))
    note = f'<p class="note">{escape(chart.note)}</p>' if chart.note else ""
    return (
        f'<figure><figcaption>{escape(chart.title)}</figcaption><div class="chart" id="chart-{number}" role="img" '
        f'aria-label="{escape(chart.title)}"></div>{note}</figure>'
    )
