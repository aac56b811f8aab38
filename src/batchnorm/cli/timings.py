"""What a benchmark shows: a bar and a table on a terminal, one full line a case elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ..bench.cases import Case
from ..bench.contenders import BATCHNORM, EAGER
from ..bench.row import TIMED, UNAVAILABLE, WRONG, Row
from ..bench.summary import findings, memory, noise
from .table import show_rows

__all__ = [
    "Board",
    "bytes_cell",
    "cells",
    "header",
    "share_cell",
    "show_cases",
    "show_summary",
    "showing",
    "time_cell",
]


def show_cases(cases: Iterable[Case]) -> None:
    """One row a case: its name, the mode, and where it occurs, how often."""
    show_rows([(case.name, case.mode, ", ".join(f"{name} ×{times}" for name, times in case.occurs)) for case in cases])


def header(peers: Sequence[str]) -> list[str]:
    """The columns' names, for the peers in this order, eager torch first."""
    columns = ["case", BATCHNORM]
    for peer in peers:
        columns += [peer, f"{peer} ÷ ours"]
    return [*columns, "÷ limit", "kept, ours/eager", "page faults, ours/eager"]


def cells(rows: Sequence[Row], peers: Sequence[str]) -> list[str]:
    """One case as text.

    Args:
        rows: Its contenders.
        peers: Whose columns there are.
    """
    by_name = {row.contender: row for row in rows}
    ours, eager = by_name[BATCHNORM], by_name[EAGER]
    line = [ours.case, time_cell(ours)]
    for peer in peers:
        row = by_name.get(peer)
        line += ["", ""] if row is None else [time_cell(row), _ratio(row)]
    limit = "" if ours.times_limit is None else f"{ours.times_limit:.2f}"
    return [
        *line,
        limit,
        f"{bytes_cell(ours.kept_bytes)}/{bytes_cell(eager.kept_bytes)}",
        f"{share_cell(ours)}/{share_cell(eager)}",
    ]


def show_summary(rows: Sequence[Row]) -> None:
    """The numbers beside the project's targets, what page faults cost, and what a model spends where."""
    found = [finding for finding in findings(rows) if finding.value is not None]
    if found:
        print()
        show_rows([("", "measured", "target", "cases"), *(finding.cells for finding in found)])
    for row in rows:
        if row.norm_share is not None and row.activation_share is not None:
            norms, rest = 100 * row.norm_share, 100 * row.activation_share
            print(f"\nas given, {norms:.0f}% of the step is norms, {rest:.0f}% activations and sums")
    paying = memory(rows)
    for sentence in (paying.sentence if paying is not None else "", noise(rows)):
        if sentence:
            print(f"\n{sentence}", flush=True)


def time_cell(row: Row) -> str:
    """Its median; why there is none, in a word."""
    if row.microseconds is None:
        return "wrong" if row.status == WRONG else "–"
    if row.microseconds < 1000:
        return f"{row.microseconds:.3g} µs" if row.microseconds < 999.5 else "1 ms"
    return f"{row.microseconds / 1000:.3g} ms" if row.microseconds < 999.5e3 else f"{row.microseconds / 1000:.0f} ms"


def _ratio(row: Row) -> str:
    if row.ratio is None or row.ratio_low is None or row.ratio_high is None:
        return ""
    return f"{row.ratio:.2f} [{row.ratio_low:.2f} {row.ratio_high:.2f}]"


def bytes_cell(count: int | None) -> str:
    """A number of bytes."""
    if count is None:
        return "–"
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB" if count else "0"


def share_cell(row: Row) -> str:
    """What page faults took of its processor time."""
    return "–" if row.fault_share is None else f"{100 * row.fault_share:.0f}%"


class Board:
    """Takes cases as they are done.

    Args:
        names: Of the cases that will come.
        peers: Who is measured beside us.
    """

    def __init__(self, names: Sequence[str], peers: Sequence[str]) -> None:
        self.peers = peers
        self.lines: list[list[str]] = []
        self.remarks: dict[str, int] = {}
        sample = ["0.123 ms", *["0.123 ms", "10.12 [10.12 10.12]"] * len(peers), "10.12", "123.4 MB/123.4 MB", ""]
        self.widths = [max(map(len, names), default=0), *map(len, sample)]
        self.widths = [max(width, len(name)) for width, name in zip(self.widths, header(peers), strict=True)]

    def take(self, rows: Sequence[Row]) -> list[str]:
        """Keeps a case for the table, and its remarks: who is wrong by how much, and who could not be measured."""
        line = cells(rows, self.peers)
        self.lines.append(line)
        for row in rows:
            if row.status != TIMED:
                remark = f"{row.contender}: {row.reason}"
                if row.status == WRONG:
                    remark = f"{row.case}: {row.contender} is wrong, and not timed: {row.reason}"
                self.remarks[remark] = self.remarks.get(remark, 0) + (row.status == UNAVAILABLE)
        return line

    def text(self, line: Sequence[str]) -> str:
        """A row of the table as one line."""
        return "  ".join(cell.ljust(width) for cell, width in zip(line, self.widths, strict=True)).rstrip()

    def show_remarks(self) -> None:
        """One line a remark."""
        for remark, times in self.remarks.items():
            print(remark + (f" ({times} cases)" if times > 1 else ""), flush=True)


class _Lines:
    """Away from a terminal: one line a case as soon as it is done."""

    def __init__(self, board: Board) -> None:
        self.board = board
        print(board.text(header(board.peers)), flush=True)

    def __call__(self, rows: Sequence[Row]) -> None:
        print(self.board.text(self.board.take(rows)), flush=True)


class _Screen:
    """On a terminal: a bar while it runs."""

    def __init__(self, board: Board, bars: Progress, names: Sequence[str]) -> None:
        self.board, self.bars, self.names = board, bars, names
        self.done = 0
        self.bar = bars.add_task(names[0] if names else "", total=len(names))

    def __call__(self, rows: Sequence[Row]) -> None:
        self.board.take(rows)
        self.done += 1
        waiting = self.names[self.done] if self.done < len(self.names) else ""
        self.bars.update(self.bar, completed=self.done, description=waiting)


@contextmanager
def showing(names: Sequence[str], peers: Sequence[str]) -> Iterator[_Lines | _Screen]:
    """Gives what takes the rows of each case; at the end, however it comes, the table and the remarks stand there.

    Args:
        names: Of the cases that will come.
        peers: Who is measured beside us.
    """
    console = Console()
    board = Board(names, peers)
    if not console.is_terminal:
        try:
            yield _Lines(board)
        finally:
            board.show_remarks()
        return
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, console=console, transient=True) as bars:
            yield _Screen(board, bars, names)
    finally:
        table = Table(box=None, pad_edge=False)
        for place, name in enumerate(header(peers)):
            table.add_column(name, overflow="fold", justify="left" if place == 0 else "right")
        for line in board.lines:
            table.add_row(*line)
        console.print(table, markup=False) if board.lines else None
        board.show_remarks()
