"""What a benchmark of a user's own model shows: a table of the training step, one of inference, and what was done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console

from ..bench.contenders import EAGER, FUSE, LEAN
from ..bench.norms import difference
from ..bench.row import INFERENCE, MODEL, UNAVAILABLE, WRONG, Row
from .table import show_rows
from .timings import bytes_cell, share_cell, time_cell

__all__ = ["cells", "remarks", "show_model", "showing_model"]

_HEADERS = {
    MODEL: ("training step", "median", "eager ÷ it", "kept", "of eager's", "page faults"),
    INFERENCE: ("inference", "median", "eager ÷ it", "", "", "page faults"),
}


def cells(row: Row, eager: Row | None) -> tuple[str, ...]:
    """One contender as text.

    Args:
        row: Of the contender.
        eager: Of the model as given, in the same mode.
    """
    gain = kept = share = ""
    if row.contender != EAGER and row.speedup is not None:
        gain = f"{row.speedup:.2f} [{row.speedup_low:.2f} {row.speedup_high:.2f}]"
    if row.mode == MODEL:
        kept = bytes_cell(row.kept_bytes)
        if eager is not row and eager is not None and row.kept_bytes is not None and eager.kept_bytes:
            share = f"{row.kept_bytes / eager.kept_bytes:.2f}"
    return row.contender, time_cell(row), gain, kept, share, share_cell(row)


def remarks(rows: Sequence[Row]) -> Iterator[str]:
    """A line for whatever was done to the norms, and why; for how far it is off; for who is not timed, and why."""
    for row in rows:
        who = row.contender
        if row.status == WRONG:
            yield f"{who} is wrong, and not timed: {row.reason}"
        elif row.status == UNAVAILABLE:
            yield f"{who}{' (inference)' * (row.mode == INFERENCE)}: {row.reason}"
        for done in filter(None, row.norms.split(" | ")):
            yield f"{who}: {done}"
        if difference(row):
            yield f"{who}: {difference(row)}"
        if who == LEAN and row.ratio is not None:
            yield f"{who}: {row.ratio:.2f} [{row.ratio_low:.2f} {row.ratio_high:.2f}] times the time of {FUSE}"


def show_model(rows: Sequence[Row]) -> None:
    """The tables, each contender one row; then the remarks."""
    print(rows[0].case, flush=True)
    for mode, header in _HEADERS.items():
        found = [row for row in rows if row.mode == mode]
        eager = next((row for row in found if row.contender == EAGER), None)
        print()
        show_rows([header, *(cells(row, eager) for row in found)])
    print()
    for line in remarks(rows):
        print(line, flush=True)


@contextmanager
def showing_model(target: str) -> Iterator[Callable[[Sequence[Row]], None]]:
    """Gives what takes the rows; on a terminal something moves until they are there.

    Args:
        target: What names the model.
    """
    console = Console()
    found: list[Row] = []
    if console.is_terminal:
        with console.status(f"measuring {target}"):
            yield found.extend
    else:
        yield found.extend
    if found:
        show_model(found)
