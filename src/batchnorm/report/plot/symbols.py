"""Marks that tell points apart without their colour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..chart import Series

__all__ = ["CIRCLE", "Symbol", "symbols"]


@dataclass(frozen=True)
class Symbol:
    """A mark as plotly names it, and as a letter that shows it in a name."""

    name: str
    sign: str

    @property
    def open(self) -> bool:
        """Whether its inside is empty."""
        return self.name.endswith("-open")


CIRCLE = Symbol("circle", "●")
_ALL = (
    CIRCLE,
    Symbol("circle-open", "○"),
    Symbol("square", "■"),
    Symbol("diamond", "◆"),
    Symbol("triangle-up", "▲"),
    Symbol("square-open", "□"),
    Symbol("diamond-open", "◇"),
)


def symbols(series: Sequence[Series]) -> list[Symbol]:
    """Gives each series its mark: those with a name and marks differ, in the order in which they come.

    A series without a name that has another's colour belongs to it, as the seeds do to their mean, and has its mark.
    """
    found: dict[int, Symbol] = {}
    given = []
    count = 0
    for each in series:
        if each.label.strip() and (each.markers or not each.line):
            given.append(_ALL[count % len(_ALL)])
            found.setdefault(each.color, given[-1])
            count += 1
        else:
            given.append(CIRCLE)
    return [
        mark if each.label.strip() else found.get(each.color, CIRCLE) for each, mark in zip(series, given, strict=True)
    ]
