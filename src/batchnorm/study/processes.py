"""Runs over processes: one thread of arithmetic each, progress by messages, clean on Ctrl-C."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch

from .claim import Experiment, Result, Run
from .error import StudyError
from .fingerprint import Ingredients, ingredients
from .store import Store, normal
from .threads import single_threaded_children

__all__ = ["Task", "available_cores", "perform_all"]

_REPORT_SECONDS = 0.2  # a run reports at most this often: a step may take a millisecond


@dataclass(frozen=True)
class Task:
    """A run that is to be done, what its result will depend on, and where to keep it."""

    experiment: Experiment
    run: Run
    wanted: Ingredients
    store: Store | None


def available_cores() -> int:
    """Cores that this process may use, which a container or a scheduler may have limited."""
    try:
        from joblib import cpu_count  # noqa: PLC0415 - a tool, which knows of affinity and of control groups
    except ModuleNotFoundError:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(cpu_count())


def perform_all(
    tasks: Sequence[Task],
    workers: int,
    *,
    finished: Callable[[int, Result], None],
    running: Callable[[int, float, str], None],
) -> None:
    """Does all tasks, in their order as far as workers are free.

    Args:
        tasks: What to do.
        workers: Processes.
        finished: Called here with the number of a task and its result, as soon as it is there.
        running: Called here with the number of a task, the share of it that is done, and a word on where it is.

    Raises:
        StudyError: If a run fails; the message names claim, arm and seed, and the cause is attached.
    """
    # "spawn" everywhere: a forked child would inherit the thread pools of a torch that has already computed.
    context = multiprocessing.get_context("spawn")
    messages: Any = context.Queue()
    before = set(multiprocessing.active_children())
    with single_threaded_children():
        pool = ProcessPoolExecutor(workers, context, _prepare, (messages,))
        try:
            with _interrupts_held():
                pending: dict[Future[Result], int] = {
                    pool.submit(_perform, task, number): number for number, task in enumerate(tasks)
                }
            done: set[Future[Result]] = set()
            while pending:
                done, _ = wait(pending, timeout=0.1, return_when=FIRST_COMPLETED)
                ended = {pending[future] for future in done}
                for number, fraction, note in _drain(messages):
                    if number not in ended and number in pending.values():
                        running(number, fraction, note)
                for future in sorted(done, key=pending.__getitem__):
                    number = pending.pop(future)
                    try:
                        result = future.result()
                    except StudyError:
                        raise
                    except BrokenProcessPool as error:
                        raise StudyError(
                            "a worker process was ended from outside, perhaps for lack of memory.",
                            "the same command goes on from the runs that are finished; --workers 1 needs less memory",
                        ) from error
                    except Exception as error:
                        raise StudyError(f"{tasks[number].run} failed: {type(error).__name__}: {error}") from error
                    finished(number, result)
            pool.shutdown()
        except BaseException:
            for child in set(multiprocessing.active_children()) - before:
                child.terminate()
            # The pool notices that its processes died and joins them itself: two threads must not wait for one.
            pool.shutdown(cancel_futures=True)
            raise


def _drain(messages: Any) -> Iterator[tuple[int, float, str]]:
    with suppress(queue.Empty):
        while True:
            yield messages.get_nowait()


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Holds Ctrl-C back while children start: they inherit that, and so never see one before they ignore it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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


def _perform(task: Task, number: int) -> Result:
    last = 0.0

    def report(fraction: float, note: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _REPORT_SECONDS:
            last = now
            _messages.put((number, fraction, note))

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
        # Kept here and not by the parent, which may be gone before it hears that the run is finished.
        task.store.put(task.wanted, result)
    return result
