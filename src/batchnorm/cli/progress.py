"""What a study shows while it runs and when it is done: bars on a terminal, full plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from ..study import Claim, Outcome, Progress, Run

__all__ = ["show_list", "show_plan", "show_verdicts", "showing"]


def show_list(claims: Sequence[Claim]) -> None:
    """One row a claim: id, title, budget, source."""
    rows = [
        (claim.about.id, claim.about.title, f"about {claim.about.budget:.0f} core-seconds", claim.about.source)
        for claim in claims
    ]
    _rows(rows)


def show_plan(claims: Sequence[Claim], seeds: Sequence[int], data: str, workers: int) -> None:
    """What is going to run, on what, and for about how long."""
    seconds = sum(claim.about.budget for claim in claims) * len(seeds) / 5 / workers
    print(f"claims: {', '.join(claim.about.id for claim in claims)}")
    print(f"data: {data}")
    print(f"{len(seeds)} seeds, {workers} worker processes, about {max(seconds / 60, 0.1):.1f} minutes")
    if len(seeds) < 5:
        print("fewer than 5 seeds: every verdict will be inconclusive", flush=True)


def show_verdicts(outcomes: Sequence[Outcome], page: Path, seconds: float) -> None:
    """The page's path and one row a verdict: the last lines of a study."""
    print(f"\n{sum(len(outcome.results) for outcome in outcomes)} runs in {seconds:.0f} s")
    print(f"page: {page}\n")
    header = ("claim", "verdict", "effect", "of what")
    _rows(
        [
            header,
            *(
                (
                    outcome.claim.about.id,
                    outcome.conclusion.verdict.value,
                    str(outcome.conclusion.effects[0]),
                    outcome.conclusion.effects[0].name,
                )
                for outcome in outcomes
            ),
        ]
    )


def _rows(rows: Sequence[Sequence[str]]) -> None:
    # One full row a line, aligned, never cut: the terminal may wrap it, a file keeps it whole.
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip(), flush=True)


@contextmanager
def showing() -> Iterator[Callable[[Progress], None]]:
    """Gives the callback that shows progress: bars on a terminal, one line a finished run elsewhere."""
    console = Console()
    if not console.is_terminal:
        yield _line
        return
    bars = Bars(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )
    with bars:
        yield _Listener(bars)


def _line(progress: Progress) -> None:
    if progress.state == "finished":
        print(f"[{progress.finished}/{progress.total}] {progress.run}: {progress.seconds:.1f} s", flush=True)


class _Listener:
    """Keeps one bar for the whole study and one for each run that is going on."""

    def __init__(self, bars: Bars) -> None:
        self.bars = bars
        self.whole: TaskID | None = None
        self.tasks: dict[Run, TaskID] = {}

    def __call__(self, progress: Progress) -> None:
        if self.whole is None:
            self.whole = self.bars.add_task("all runs", total=progress.total, note="")
        if progress.state == "finished":
            if progress.run in self.tasks:
                self.bars.remove_task(self.tasks.pop(progress.run))
        else:
            if progress.run not in self.tasks:
                self.tasks[progress.run] = self.bars.add_task(str(progress.run), total=100, note="")
            self.bars.update(self.tasks[progress.run], completed=round(100 * progress.fraction), note=progress.note)
        left = progress.total - progress.finished - len(self.tasks)
        self.bars.update(self.whole, completed=progress.finished, note=f"{left} waiting")
