"""What a page is made of, as plain data: sections, and the blocks that stand in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from .chart import Figure
from .small import Small

__all__ = [
    "Block",
    "Code",
    "Counts",
    "Entries",
    "Entry",
    "Fold",
    "Formula",
    "Heading",
    "Line",
    "Lines",
    "Link",
    "Section",
    "Table",
]


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
    """A heading within a section, with its name in the page's address, and words with their tones beside it."""

    text: str
    anchor: str = ""
    badges: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Link:
    """A line that leads to another place on the page."""

    text: str
    anchor: str


@dataclass(frozen=True)
class Code:
    """Text to be typed as it stands."""

    text: str


@dataclass(frozen=True)
class Fold:
    """What is shown when its line is pressed."""

    text: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Entry:
    """One of many things of a kind.

    Args:
        title: Its name.
        anchor: Its name in the page's address.
        about: What it is, in a few words beside the name.
        badges: Words with their tones: "good", "bad", "open" or nothing.
        pictures: Side by side, below its name.
        more: What is pressed to see the blocks, and the pictures large.
        blocks: What is shown then.
        marked: Whether it is one of those that a reader may ask for alone.
        number: Its number, before its name.
    """

    title: str
    anchor: str
    about: str = ""
    badges: tuple[tuple[str, str], ...] = ()
    pictures: Sequence[Small] = ()
    more: str = "More"
    blocks: Sequence[Block] = ()
    marked: bool = False
    number: str = ""


@dataclass(frozen=True)
class Entries:
    """A list of many things of a kind.

    Args:
        entries: In order.
        only: What is beside the box that leaves the marked ones alone; no such box where it is empty.
    """

    entries: Sequence[Entry]
    only: str = ""


@dataclass(frozen=True)
class Counts:
    """How many there are of each kind, in figures that are seen from far away: number, word and tone."""

    of: Sequence[tuple[int, str, str]]


@dataclass(frozen=True)
class Line:
    """What is to be known of a thing at a glance.

    Args:
        title: Its name.
        anchor: Where on the page it is told.
        badge: A word beside its name.
        tone: The badge's colour: "good", "bad", "open" or nothing.
        words: What the fact is about.
        fact: What is emphasised, such as a number.
        rest: What follows it, in a softer colour.
        picture: Its outline is drawn beside the line.
    """

    title: str
    anchor: str
    badge: str = ""
    tone: str = ""
    words: str = ""
    fact: str = ""
    rest: str = ""
    picture: Figure | None = None


@dataclass(frozen=True)
class Lines:
    """A heading, with its name in the page's address, and lines in large type below it."""

    title: str
    lines: Sequence[Line]
    anchor: str = ""


#: A paragraph is text, and a pair is a term and its explanation.
Block: TypeAlias = (
    "str | tuple[str, str] | Heading | Formula | Table | Code | Link | Fold | Entries | Counts | Lines | Figure"
)


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
