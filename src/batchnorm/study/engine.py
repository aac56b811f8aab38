"""Runs claims over processes: one thread of arithmetic each, progress by callback, clean on Ctrl-C.

What a run gives depends on its claim's settings and on the run alone, so a later engine can keep results and
skip what it has: results are JSON, and :func:`run_study` is the only place that hands out work.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from .claim import Claim, Conclusion, Result, Run, StudyError, Verdict

__all__ = ["Outcome", "Progress", "available_cores", "run_study"]

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# With 3, Student's t is 4.3, and nearly everything is inconclusive: by rule, then, everything is below 5.
MINIMUM_SEEDS = 5
_REPORT_SECONDS = 0.2  # a run reports at most this often: a step may take a millisecond


@dataclass(frozen=True)
class Progress:
    """Where one run is.

    Args:
        run: Which run.
        state: "running" while it reports, "finished" once.
        fraction: Share of its work that is done.
        note: A word from the run, such as its step and accuracy.
        finished: Runs that are done, of all claims.
        total: Runs there are.
        seconds: How long a finished run took.
    """

    run: Run
    state: Literal["running", "finished"]
    fraction: float
    note: str
    finished: int
    total: int
    seconds: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """A claim with the results of its runs and what they say."""

    claim: Claim
    results: Sequence[Result]
    conclusion: Conclusion


def available_cores() -> int:
    """Cores that this process may use, which a container or a scheduler may have limited."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_study(
    claims: Sequence[Claim],
    seeds: Sequence[int],
    data: str,
    *,
    workers: int | None = None,
    listen: Callable[[Progress], None] = lambda progress: None,
) -> list[Outcome]:
    """Runs every run of every claim and concludes each claim.

    Args:
        claims: What to run, in the order of the outcomes.
        seeds: The seeds; the interval of every effect is over them.
        data: Name of the data set for claims that train on data.
        workers: Processes; by default one an available core.
        listen: Called in this process as runs go on.

    Raises:
        StudyError: If a run fails: the message names claim, arm and seed, and the cause is attached.
    """
    tasks = [(claim, run) for claim in claims for run in claim.plan(seeds, data if claim.about.trained else "")]
    # Long runs first: a long one that starts last would leave the other cores idle.
    tasks.sort(key=lambda task: -task[0].about.budget)
    results = _execute(tasks, min(workers or available_cores(), len(tasks)), listen) if tasks else []
    outcomes = []
    for claim in claims:
        own = [result for result in results if result.run.claim == claim.about.id]
        outcomes.append(Outcome(claim, own, _with_enough_seeds(claim.conclude(own), len(seeds))))
    return outcomes


def _with_enough_seeds(conclusion: Conclusion, count: int) -> Conclusion:
    if count >= MINIMUM_SEEDS:
        return conclusion
    reason = f"With {count} of at least {MINIMUM_SEEDS} seeds nothing is concluded. {conclusion.reason}"
    return replace(conclusion, verdict=Verdict.INCONCLUSIVE, reason=reason)


def _execute(tasks: Sequence[tuple[Claim, Run]], workers: int, listen: Callable[[Progress], None]) -> list[Result]:
    # "spawn" everywhere: a forked child would inherit the thread pools of a torch that has already computed.
    context = multiprocessing.get_context("spawn")
    messages: Any = context.Queue()
    before = set(multiprocessing.active_children())
    results: dict[int, Result] = {}
    with _single_threaded_children():
        pool = ProcessPoolExecutor(workers, context, _prepare, (messages,))
        try:
            pending: dict[Future[Result], int] = {
                pool.submit(_perform, claim, run, number): number for number, (claim, run) in enumerate(tasks)
            }
            while pending:
                done, _ = wait(pending, timeout=0.1, return_when=FIRST_COMPLETED)
                for number, fraction, note in _drain(messages):
                    if number not in results:
                        listen(Progress(tasks[number][1], "running", fraction, note, len(results), len(tasks)))
                for future in done:
                    number = pending.pop(future)
                    run = tasks[number][1]
                    try:
                        results[number] = future.result()
                    except Exception as error:
                        raise StudyError(f"{run} failed: {type(error).__name__}: {error}") from error
                    seconds = results[number].seconds
                    listen(Progress(run, "finished", 1.0, "", len(results), len(tasks), seconds))
            pool.shutdown()
        except BaseException:
            for child in set(multiprocessing.active_children()) - before:
                child.terminate()
            # The pool notices that its processes died and joins them itself: two threads must not wait for one.
            pool.shutdown(cancel_futures=True)
            raise
    return [results[number] for number in range(len(tasks))]


def _drain(messages: Any) -> Iterator[tuple[int, float, str]]:
    with suppress(queue.Empty):
        while True:
            yield messages.get_nowait()


@contextmanager
def _single_threaded_children() -> Iterator[None]:
    """Lets children start with one thread of arithmetic: libraries read these variables when they load."""
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


_messages: Any = None


def _prepare(messages: Any) -> None:
    """Sets up a child: quiet on Ctrl-C (the parent ends it), one thread, and gone if its parent is."""
    global _messages  # noqa: PLW0603 - a child serves one study, and tasks cannot carry a queue
    _messages = messages
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    if parent is not None:

        def follow() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=follow, daemon=True).start()


def _perform(claim: Claim, run: Run, number: int) -> Result:
    last = 0.0

    def report(fraction: float, note: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _REPORT_SECONDS:
            last = now
            _messages.put((number, fraction, note))

    started = time.perf_counter()
    report(0.0, "starts")
    values = claim.execute(run, report)
    return Result(run, values, time.perf_counter() - started)
