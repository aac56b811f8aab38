"""What can be read from the back of a room: counts in large figures, and one line a thing with a sketch beside it."""

from __future__ import annotations

from .block import Counts, Line, Lines
from .plot.sketch import sketch
from .plot.small import svg
from .written import escape

__all__ = ["counts", "lines"]


def counts(block: Counts) -> str:
    """Gives the figures in a row."""
    parts = (f'<span class="{escape(tone)}"><b>{number}</b> {escape(word)}</span> ' for number, word, tone in block.of)
    return f'<p class="counts">{"".join(parts)}</p>'


def lines(block: Lines) -> str:
    """Gives the heading and its lines."""
    anchor = f' id="{escape(block.anchor)}"' if block.anchor else ""
    # The role is stated: a list without its dots is none to some browsers.
    rows = "".join(map(_line, block.lines))
    return f'<div class="lines"><h3{anchor}>{escape(block.title)}</h3><ul role="list">{rows}</ul></div>'


def _line(line: Line) -> str:
    badge = f' <span class="badge {escape(line.tone)}">{escape(line.badge)}</span>' if line.badge else ""
    words = f"{escape(line.words)}: " if line.words and line.fact else escape(line.words)
    fact = f"<b>{escape(line.fact)}</b>" if line.fact else ""
    rest = f' <span class="rest">{escape(line.rest)}</span>' if line.rest else ""
    small = None if line.picture is None else sketch(line.picture)
    # It repeats the first figure of the place that the line leads to, which is told in words there.
    drawn = "" if small is None else f'<div class="sketch" aria-hidden="true">{svg(small)}</div>'
    return (
        f'<li><p class="to"><a href="#{escape(line.anchor)}">{escape(line.title)}</a>{badge}</p>'
        f'<p class="fact">{words}{fact}{rest}</p>{drawn}</li>'
    )
