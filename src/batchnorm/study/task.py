"""A run as work for another process: what is sent there, how it is done there, and what comes back."""

from __future__ import annotations

import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from .claim import Experiment, Report, Result, Run
from .error import StudyError
from .fingerprint import Ingredients, ingredients
from .store import Store, normal

__all__ = ["RESTARTS", "Crew", "Deaths", "Failure", "Task", "perform"]

#: How often a run is started again after the process that was doing it died.
RESTARTS = 2

_REPORT_SECONDS = 0.2  # a run reports at most this often: a step may take a millisecond


@dataclass(frozen=True)
class Task:
    """A run that is to be done, what its result will depend on, and where whoever does it keeps it."""

    experiment: Experiment
    run: Run
    wanted: Ingredients
    store: Store | None


@dataclass(frozen=True)
class Crew:
    """Who does the runs of a study.

    Args:
        workers: Processes, one thread of arithmetic each.
        nodes: Machines that they are on.
        ray: The version of Ray that started them; empty where they are this process's own.
        left_out: Machines of the cluster that would give other numbers, or none, and why.
    """

    workers: int
    nodes: int = 1
    ray: str = ""
    left_out: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Who they are, in words."""
        kind = "Ray" if self.ray else "worker"
        where = f" on {self.nodes} node{'s' if self.nodes > 1 else ''}" if self.ray else ""
        return f"{self.workers} {kind} processes{where}"


class _ElsewhereError(Exception):
    """Where a run failed, as text: the frames themselves stay in the process that had them."""


@dataclass(frozen=True)
class Failure:
    """Why a run has no result, in a form that any process can read: the user's exceptions may not even be picklable."""

    error: StudyError
    where: str

    @classmethod
    def of(cls, error: BaseException, run: Run | None = None) -> Failure:
        """What an exception in a worker says; of a :class:`StudyError` its own words."""
        where = "".join(traceback.format_exception(error))
        if not isinstance(error, StudyError):
            subject = f"{run} failed" if run is not None else "a worker cannot read what it is to do"
            error = StudyError(f"{subject}: {type(error).__name__}: {error}")
        return cls(error, where)

    def throw(self) -> NoReturn:
        """Raises it, with the place where it happened as its cause."""
        raise self.error from _ElsewhereError(f"\n{self.where}")


class Deaths:
    """Counts the processes that died at each run, which is no fault of the run until it happens again and again."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.tasks = tasks
        self.counts: Counter[int] = Counter()

    def add(self, number: int, error: BaseException | None = None) -> None:
        """Notes that a process died while it did the task of that number.

        Raises:
            StudyError: If the task is not to be started again.
        """
        self.counts[number] += 1
        if self.counts[number] > RESTARTS:
            raise StudyError(
                f"{self.tasks[number].run}: {self.counts[number]} times a worker process was ended from outside while "
                "it did this, perhaps for lack of memory.",
                "the same command goes on from the runs that are finished; fewer --workers need less memory",
            ) from error


def perform(task: Task, report: Report) -> Result | Failure:
    """Does one run, in the process that calls it, and keeps its result where the task says so.

    Args:
        task: The run.
        report: Called now and then with the share that is done and a word on where it is.
    """
    try:
        return _perform(task, _seldom(report))
    except (Exception, SystemExit) as error:
        return Failure.of(error, task.run)


def _perform(task: Task, report: Report) -> Result:
    report(0.0, "starts")
    here = ingredients(task.experiment, task.run)
    changed = [name for name, value in task.wanted.items() if here[name] != value]
    if changed:
        raise StudyError(
            f"{task.run}: its {' and '.join(changed)} changed since the study started.",
            "leave data and code alone while it runs; a callable must give the same images each time",
        )
    started = time.perf_counter()
    values = task.experiment.execute(task.run, report)
    try:
        result = normal(Result(task.run, values, time.perf_counter() - started))
    except TypeError as error:
        raise StudyError(f"{task.run}: its values cannot be kept: {error}") from error
    if task.store is not None:
        task.store.put(task.wanted, result)
    return result


def _seldom(report: Report) -> Report:
    last = -_REPORT_SECONDS

    def now_and_then(fraction: float, note: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _REPORT_SECONDS:
            last = now
            report(fraction, note)

    return now_and_then
