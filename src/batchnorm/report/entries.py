"""A long list of things of one kind, as markup: a name, a row of small pictures, and what unfolds below them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .block import Block, Entries, Entry
from .plot.small import svg
from .small import Small
from .written import escape

__all__ = ["badges", "breakable", "entries"]


def entries(listed: Entries, inner: Callable[[Sequence[Block]], str]) -> str:
    """Gives the list.

    Args:
        listed: The entries.
        inner: Gives the markup of blocks within an entry.
    """
    marked = sum(each.marked for each in listed.entries)
    choice = ""
    # Where all or none are marked there is nothing to choose.
    if listed.only and 0 < marked < len(listed.entries):
        words = f"{listed.only} ({marked} of {len(listed.entries)})"
        choice = f'<p class="only"><label><input type="checkbox"> {escape(words)}</label></p>'
    rows = "\n".join(_entry(each, inner) for each in listed.entries)
    return f'<div class="entries">{choice}{rows}</div>'


def _entry(entry: Entry, inner: Callable[[Sequence[Block]], str]) -> str:
    anchor = escape(entry.anchor)
    kind = "entry marked" if entry.marked else "entry"
    words = f' <span class="about">{escape(entry.about)}</span>' if entry.about else ""
    number = f'<span class="number">{escape(entry.number)}</span> ' if entry.number else ""
    parts = [
        f'<article class="{kind}" id="{anchor}" aria-labelledby="{anchor}-name">',
        f'<h3 id="{anchor}-name">{number}{breakable(entry.title)}{words}{badges(entry.badges)}</h3>',
        f'<div class="smalls">{"".join(map(_small, entry.pictures))}</div>' if entry.pictures else "",
    ]
    if entry.blocks:
        parts.append(f"<details><summary>{escape(entry.more)}</summary>{inner(entry.blocks)}</details>")
    return "".join([*parts, "</article>"])


def breakable(name: str) -> str:
    """A name that may go on in the next line behind each of its dots, as the path of a layer does."""
    return escape(name).replace(".", ".<wbr>")


def badges(given: tuple[tuple[str, str], ...]) -> str:
    """Words with a rim, each with its tone."""
    return "".join(f' <span class="badge {escape(tone)}">{escape(text)}</span>' for text, tone in given)


def _small(small: Small) -> str:
    name = f'<p class="name">{escape(small.title)}</p>'
    if small.empty:
        return f'<div class="small">{name}<p class="none">{escape(small.empty)}</p></div>'
    low, high = small.y_ends
    y_ends = f'<span class="high">{escape(high)}</span><span class="low">{escape(low)}</span>' if low or high else ""
    left, right = small.x_ends
    return (
        f'<div class="small">{name}<div class="sketch" role="img" aria-label="{escape(small.words)}">'
        f'{svg(small)}{y_ends}</div><p class="ends" aria-hidden="true"><span>{escape(left)}</span>'
        f"<i>{escape(small.x_label)}</i><span>{escape(right)}</span></p>"
        f'<p class="caption">{"<br>".join(map(escape, small.caption))}</p></div>'
    )
