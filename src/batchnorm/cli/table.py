"""Rows of text that are never cut."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["show_rows", "widths"]


def widths(rows: Sequence[Sequence[str]]) -> list[int]:
    """The width of each column."""
    return [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]


def show_rows(rows: Sequence[Sequence[str]]) -> None:
    """One full row a line, aligned, never cut: the terminal may wrap it, a file keeps it whole."""
    if not rows:
        return
    room = widths(rows)
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, room, strict=True)).rstrip(), flush=True)
