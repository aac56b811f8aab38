"""What is said while passes over batches run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeAlias

__all__ = ["Progress", "Report", "report"]

Report: TypeAlias = Callable[[int, "int | None", int, int], object]
Progress: TypeAlias = "bool | Report | None"


class Line:
    """One line on stderr, written over and over.

    Args:
        tool: What it begins with.
    """

    def __init__(self, tool: str) -> None:
        self._tool, self._length = tool, 0

    def __call__(self, done: int, total: int | None, number: int, passes: int) -> None:
        """So many batches are done, of a pass of so many."""
        of = f" of {total}" if total is not None else ""
        which = f", pass {number} of {passes}" if passes > 1 else ""
        text = f"{self._tool}: batch {done}{of}{which}"
        print("\r" + text.ljust(self._length), end="", file=sys.stderr, flush=True)
        self._length = len(text)

    def end(self) -> None:
        """The line is complete."""
        if self._length:
            print(file=sys.stderr, flush=True)


def report(progress: Progress, tool: str, rank: int) -> Report | None:
    """What is to be called after each batch: on rank 0 a line, on every rank a function that was given."""
    if progress is True:
        return Line(tool) if rank == 0 else None
    return progress or None
