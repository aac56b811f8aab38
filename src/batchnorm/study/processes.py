"""Runs over processes of this machine: one thread of arithmetic each, clean on Ctrl-C, and none can hurt another."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext

import torch

from .claim import Result
from .error import StudyError
from .task import Deaths, Failure, Task, perform
from .threads import single_threaded_children

__all__ = ["available_cores", "perform_all"]


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

    A worker that dies costs its own run only, which another begins again.

    Args:
        tasks: What to do.
        workers: Processes.
        finished: Called here with the number of a task and its result, as soon as it is there.
        running: Called here with the number of a task, the share of it that is done, and a word on where it is.

    Raises:
        StudyError: If a run fails, or its workers die again and again; the message names claim, arm and seed, and the
            cause is attached.
    """
    waiting, deaths = deque(range(len(tasks))), Deaths(tasks)
    crew: list[_Worker] = []
    with single_threaded_children():
        try:
            while waiting or any(worker.number is not None for worker in crew):
                while waiting and (idle := _idle(crew, workers)) is not None:
                    number = waiting.popleft()
                    idle.begin(number, tasks[number])
                # With a limit, since not every system lets Ctrl-C through to one that waits without.
                for pipe in wait([worker.pipe for worker in crew if worker.number is not None], timeout=0.5):
                    worker = next(worker for worker in crew if worker.pipe is pipe)
                    assert worker.number is not None
                    number, message = worker.number, worker.hear()
                    if isinstance(message, Failure):
                        message.throw()
                    elif isinstance(message, Result):
                        finished(number, message)
                    elif message is not None:
                        running(number, *message)
                    else:
                        crew.remove(worker)
                        worker.end()
                        deaths.add(number)
                        waiting.appendleft(number)
        except BaseException:
            for worker in crew:
                worker.process.terminate()
            raise
        finally:
            for worker in crew:
                worker.pipe.close()  # of all first: they end at the same time
            for worker in crew:
                worker.end()


class _Worker:
    """A process, and a pipe to it that no other process shares: what is killed cannot keep a lock that others need."""

    def __init__(self) -> None:
        # "spawn" everywhere: a forked child would inherit the thread pools of a torch that has already computed.
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = _started(context, theirs)
        self.number: int | None = None
        theirs.close()

    def begin(self, number: int, task: Task) -> None:
        """Sends a task; that the process is gone shows when one listens.

        Raises:
            StudyError: If the task cannot be sent.
        """
        self.number = number
        try:
            self.pipe.send(task)
        except OSError:
            pass
        except Exception as error:
            raise StudyError(f"{task.run} cannot be sent to a worker: {type(error).__name__}: {error}") from error

    def hear(self) -> Result | Failure | tuple[float, str] | None:
        """The next message: how a run ended, or where it is; None where the process is gone."""
        try:
            message: Result | Failure | tuple[float, str] = self.pipe.recv()
        except (EOFError, OSError):
            return None
        if isinstance(message, Result):
            self.number = None
        return message

    def end(self) -> None:
        """Lets the process go, which ends when nobody is at the other end of its pipe, and waits until it has."""
        self.pipe.close()
        self.process.join()


def _idle(crew: list[_Worker], most: int) -> _Worker | None:
    """One of the crew that has nothing to do, or a new one as long as there are fewer than ``most``."""
    for worker in crew:
        if worker.number is None:
            return worker
    if len(crew) >= most:
        return None
    crew.append(_Worker())
    return crew[-1]


def _started(context: SpawnContext, pipe: Connection) -> multiprocessing.process.BaseProcess:
    process = context.Process(target=_serve, args=(pipe,))
    with _interrupts_held():
        process.start()
    return process


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


def _serve(pipe: Connection) -> None:
    """The life of a child: quiet on Ctrl-C (the parent ends it), one thread, and gone if its parent is."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    if parent is not None:

        def follow() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=follow, daemon=True).start()
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        except Exception as error:
            pipe.send(Failure.of(error))
            return
        # Kept by perform and not by the parent, which may be gone before it hears that the run is finished.
        pipe.send(perform(task, lambda fraction, note: pipe.send((fraction, note))))
