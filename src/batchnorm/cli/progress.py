"""What a study shows while it runs and when it is done: bars on a terminal, full plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from ..study import Claim, Outcome, Plan, Progress, Run, StudyError
from ..study.engine import MINIMUM_SEEDS
from ..study.environment import Environment, counted
from ..study.task import Crew
from .table import show_rows

__all__ = ["show_crew", "show_left_out", "show_list", "show_plan", "show_verdicts", "showing"]


def show_list(claims: Sequence[Claim]) -> None:
    """One row a claim: id, tier, budget, title, source."""
    show_rows(
        [
            (about.id, about.tier, f"about {about.budget:.0f} core-seconds", about.title, about.source)
            for about in (claim.about for claim in claims)
        ]
    )


def show_plan(plan: Plan, data: str, workers: int | None) -> None:
    """What is going to run, on what, at which cost, and what is kept from an earlier start.

    Args:
        plan: The study.
        data: Its images, in words.
        workers: Its processes; None where a cluster decides that.
    """
    rows = []
    for experiment in plan.experiments:
        runs, kept = plan.counts(experiment)
        reused = f"{kept} kept" if kept else ""
        cost = f"about {plan.seconds_left(experiment):.0f} core-seconds"
        rows.append((experiment.id, counted(runs, "run"), reused, cost))
    show_rows(rows)
    print(f"data: {data}")
    if plan.kept:
        print(f"kept from before, in {plan.store}: {len(plan.kept)} of {counted(len(plan.runs), 'run')}")
    minutes = sum(plan.seconds_left(experiment) for experiment in plan.experiments) / (workers or 1) / 60
    length = "nothing left to run" if len(plan.kept) == len(plan.runs) else f"about {max(minutes, 0.1):.1f} minutes"
    crew = f"{workers} worker process{'es' * (workers != 1)}" if workers else "a Ray cluster, by one core"
    print(
        f"{counted(len(plan.seeds), 'seed')}, {crew}, {length} (budgets are for MNIST-5k and the study's own networks)",
        flush=True,
    )
    if len(plan.seeds) < MINIMUM_SEEDS:
        print(f"fewer than {MINIMUM_SEEDS} seeds: every verdict will be inconclusive", flush=True)


def show_crew(crew: Crew) -> None:
    """Which part of a cluster does the runs, and why not the rest; of this machine's own processes nothing."""
    if crew.ray:
        print(f"{crew}", flush=True)
    for node in crew.left_out:
        print(f"left out: {node}", flush=True)


def show_left_out(error: StudyError) -> None:
    """Why a claim is not put to a network of the user's."""
    print(f"left out: {error}", flush=True)


def show_verdicts(
    outcomes: Sequence[Outcome], page: Path, environment: Environment, pictures: Sequence[Path] = ()
) -> None:
    """The page's path, where the pictures are, and one row a verdict: the last lines of a study."""
    kept = f", {environment.kept} of them kept from before" if environment.kept else ""
    print(f"\n{counted(environment.runs, 'run')} in {environment.seconds:.0f} s{kept}")
    print(f"page: {page}")
    if pictures:
        print(f"{counted(len(pictures), 'picture')}: {pictures[0].parent}")
    print()
    header = ("claim", "verdict", "effect", "of what")
    show_rows(
        [
            header,
            *(
                (
                    outcome.claim.about.id,
                    outcome.conclusion.verdict.value,
                    *outcome.effect,
                )
                for outcome in outcomes
            ),
        ]
    )


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
