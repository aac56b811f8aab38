"""One self-contained HTML page: text, formulas, tables and charts, and nothing that is fetched from elsewhere.

Light and dark follow the reader's system, print is always light, and a telephone never scrolls sideways. All
text is escaped; the only markup is made here and in :mod:`batchnorm.report.formula`, which checks what it gives.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from string import Template

from .block import Block, Code, Counts, Entries, Fold, Formula, Heading, Lines, Link, Section, Table
from .chart import Chart, Contours, Figure, Intervals, Panels, Pictures
from .description import described
from .entries import badges, breakable, entries
from .entry_style import ENTRY_STYLE
from .formula import mathml
from .images import pictures
from .line_style import LINE_STYLE
from .lines import counts, lines
from .plot import Drawing, alike, figure
from .script import FOLD, SCRIPT
from .shell import PAGE
from .style import STYLE
from .written import escape

__all__ = ["render"]

_NOSCRIPT = '<noscript><p class="lead">The plots need JavaScript; {}.</p></noscript>\n'
# What a tone says without its colour, in the list of contents, where there is no room for the word.
_NAMES = 40  # pixels to the right of a plot from which on names stand there
_SIGNS = {"good": "✓", "bad": "✗", "open": "?"}


def render(
    title: str,
    lead: str,
    sections: Sequence[Section],
    *,
    footer: str = "",
    without_scripts: str = "the verdicts and effects are in the tables",
) -> str:
    """Gives the whole page as text.

    Args:
        title: The page's title.
        lead: A paragraph under it.
        sections: What follows, in order; those with an anchor are listed in the contents.
        footer: The last line.
        without_scripts: What a reader without JavaScript has in place of charts, where the page has some.

    Raises:
        ModuleNotFoundError: If there are charts, and plotly, which brings the script that draws, is not installed; or
            images, and Pillow is not.
        ValueError: If a formula is none.
    """
    charts: list[Drawing] = []
    body = "\n".join(_section(section, charts) for section in sections)
    return Template(PAGE).substitute(
        title=escape(title),
        lead=escape(lead),
        noscript=_NOSCRIPT.format(escape(without_scripts)) if charts else "",
        contents=_contents(sections),
        body=body,
        footer=escape(footer),
        style=STYLE + ENTRY_STYLE + LINE_STYLE,
        script=SCRIPT,
        plotly=_plotly() if charts else "",
        # "<" is written as an escape so that no text can end the script element.
        charts=json.dumps(charts, allow_nan=False).replace("<", "\\u003c"),
    )


def _plotly() -> str:
    from plotly.offline import get_plotlyjs  # noqa: PLC0415 - only the page needs it, and it is large

    script: str = get_plotlyjs()
    return script


def _contents(sections: Sequence[Section]) -> str:
    rows = []
    for section in sections:
        if section.anchor:
            sign = f'<i class="{escape(section.tone)}" aria-hidden="true">{_SIGNS.get(section.tone, "")}</i>'
            rows.append(f'<li><a href="#{escape(section.anchor)}">{sign}<span>{escape(section.title)}</span></a></li>')
    if not rows:
        return ""
    listing = f"<ol>{''.join(rows)}</ol>"
    # Open as it comes, for readers without scripts; the one behind it closes it at once where it would cover the text.
    fold = f"<details open><summary><b>Contents</b><span></span></summary>{listing}</details>"
    return f'<nav aria-label="Contents">{fold}<script>{FOLD}</script></nav>'


def _section(section: Section, charts: list[Drawing]) -> str:
    badge = f' <span class="badge {escape(section.tone)}">{escape(section.badge)}</span>' if section.badge else ""
    anchor = f' id="{escape(section.anchor)}"' if section.anchor else ""
    # A section that begins with an overview is read from far away.
    glance = ' class="glance"' if any(isinstance(block, Lines) for block in section.blocks) else ""
    head = f"<section{anchor}{glance}>\n<h2>{escape(section.title)}{badge}</h2>"
    return f"{head}\n{_blocks(section.blocks, charts)}\n</section>"


def _blocks(blocks: Sequence[Block], charts: list[Drawing]) -> str:
    parts = []
    open_list = False
    for block in blocks:
        if isinstance(block, tuple) != open_list:
            open_list = not open_list
            parts.append("<dl>" if open_list else "</dl>")
        parts.append(_block(block, charts))
    return "\n".join([*parts, "</dl>" if open_list else ""])


def _block(block: Block, charts: list[Drawing]) -> str:
    match block:
        case str():
            markup = f"<p>{escape(block)}</p>"
        case (term, words):
            markup = f"<dt>{escape(term)}</dt><dd>{escape(words)}</dd>"
        case Heading():
            anchor = f' id="{escape(block.anchor)}"' if block.anchor else ""
            markup = f"<h3{anchor}>{escape(block.text)}{badges(block.badges)}</h3>"
        case Link():
            markup = f'<p class="back"><a href="#{escape(block.anchor)}">{escape(block.text)}</a></p>'
        case Code():
            markup = f"<pre><code>{escape(block.text)}</code></pre>"
        case Formula():
            markup = f'<div class="formula">{mathml(block.latex)}</div>'
        case Table():
            markup = _table(block)
        case Fold():
            inside = _blocks(block.blocks, charts)
            markup = f'<details class="fold"><summary>{escape(block.text)}</summary>{inside}</details>'
        case Entries():
            markup = entries(block, lambda inside: _blocks(inside, charts))
        case Counts():
            markup = counts(block)
        case Lines():
            markup = lines(block)
        case _:
            markup = _figure(block, charts)
    return markup


def _table(table: Table) -> str:
    # The roles are stated: a telephone shows rows as blocks, which would take their meaning away.
    head = "".join(f'<th scope="col" role="columnheader">{escape(cell)}</th>' for cell in table.header)
    rows = []
    for number, row in enumerate(table.rows):
        tone = table.tones[number] if number < len(table.tones) else ""
        link = table.links[number] if number < len(table.links) else ""
        cells = []
        for place, (label, cell) in enumerate(zip(table.header, row, strict=True)):
            inner = escape(cell)
            if link and place == 0:
                inner = f'<a href="#{escape(link)}">{breakable(cell)}</a>'
            kind = f' class="badge {escape(tone)}"' if tone and place == 1 else ""
            name, role = ("th", 'class="first" scope="row" role="rowheader"') if place == 0 else ("td", 'role="cell"')
            cells.append(f'<{name} {role} data-label="{escape(label)}"><span{kind}>{inner}</span></{name}>')
        rows.append(f'<tr role="row">{"".join(cells)}</tr>')
    name = escape(table.title or ", ".join(table.header))
    return (
        f'<table role="table" aria-label="{name}"><thead role="rowgroup"><tr role="row">{head}</tr></thead>'
        f'<tbody role="rowgroup">{"".join(rows)}</tbody></table>'
    )


def _figure(shown: Figure, charts: list[Drawing]) -> str:
    caption = f"<figcaption>{escape(shown.title)}</figcaption>"
    if isinstance(shown, Pictures):
        return f"<figure>{caption}{pictures(shown)}{_note(shown.note)}</figure>"
    if not isinstance(shown, Panels):
        return f"<figure>{caption}{''.join(_chart(shown, figure(shown), charts))}</figure>"
    drawings = alike([figure(chart) for chart in shown.charts])
    panels = [
        f'<div class="panel"><p class="name">{escape(chart.title)}</p>'
        f"{''.join(_chart(chart, drawing, charts, shown.title))}</div>"
        for chart, drawing in zip(shown.charts, drawings, strict=True)
    ]
    # Three fit in a row unless names stand to the right of their lines.
    narrow = len(drawings) == 3 and all(drawing["layout"]["margin"]["r"] < _NAMES for drawing in drawings)
    kind = "panels three" if narrow else "panels"
    return f'<figure>{caption}<div class="{kind}">{"".join(panels)}</div>{_note(shown.note)}</figure>'


def _chart(chart: Chart, drawing: Drawing, charts: list[Drawing], title: str = "") -> tuple[str, ...]:
    """The chart's place, the names of its axes around it, and its note: always four parts, so that panels align."""
    number = len(charts)
    charts.append(drawing)
    y_label = "" if isinstance(chart, Intervals) else chart.y_label
    # A surface has a third axis, whose numbers stand on its lines.
    note = f"Numbers on the lines: {chart.z_label}. {chart.note}" if isinstance(chart, Contours) else chart.note
    # The height is stated: what is drawn only when it comes near must not move what is being read.
    height = int(drawing["layout"]["height"])
    place = (
        f'<div class="chart" id="chart-{number}" role="img" aria-label="{escape(described(chart, title))}" '
        f'style="height:{height}px"></div>'
    )
    return (
        f'<p class="axis y">{escape(y_label)}</p>',
        place,
        f'<p class="axis x">{escape(chart.x_label)}</p>',
        _note(note) or '<p class="note"></p>',
    )


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>' if text else ""
