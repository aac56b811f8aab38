"""What a page is made of, as plain data: sections, and the blocks that stand in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from .chart import Figure

__all__ = ["Block", "Code", "Formula", "Heading", "Link", "Section", "Table"]


@dataclass(frozen=True)
class Table:
    """A table of text.

    Args:
        header: The columns' names; a telephone shows them beside each cell.
        rows: The rows, a cell a column; the first cell names its row.
        tones: Colours of the rows' second cells as badges: "good", "bad", "open" or nothing.
        links: Anchors that the rows' first cells lead to.
        title: What the table holds, for readers who hear it; the columns' names where there is none.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    tones: Sequence[str] = ()
    links: Sequence[str] = ()
    title: str = ""


@dataclass(frozen=True)
class Formula:
    r"""A formula in LaTeX, on a line of its own; stretches between ``\qquad`` stand below each other where needed."""

    latex: str


@dataclass(frozen=True)
class Heading:
    """A heading within a section, with its name in the page's address."""

    text: str
    anchor: str = ""


@dataclass(frozen=True)
class Link:
    """A line that leads to another place on the page."""

    text: str
    anchor: str


@dataclass(frozen=True)
class Code:
    """Text to be typed as it stands."""

    text: str


#: A paragraph is text, and a pair is a term and its explanation.
Block: TypeAlias = str | tuple[str, str] | Heading | Formula | Table | Code | Link | Figure


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it.

    Args:
        title: The heading.
        anchor: Its name in the page's address; a section without one is not listed in the contents.
        badge: A word beside the heading, such as a verdict.
        tone: The badge's colour: "good", "bad", "open" or nothing.
        blocks: What stands there, in order.
    """

    title: str
    anchor: str = ""
    badge: str = ""
    tone: str = ""
    blocks: Sequence[Block] = field(default_factory=tuple)
