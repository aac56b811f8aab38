"""Work in a process of its own: what dies or hangs there ends nothing here."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

__all__ = ["Apart", "Lost"]

_PATIENCE = 5.0  # seconds for a process to end once it was told to


class Lost(Exception):  # noqa: N818 - no fault of the program
    """Why a job has no result: its process died, took too long, or the job raised."""


class Apart:
    """Calls a function in another process, which starts when it is needed and goes on from job to job.

    An error of a GPU, such as an address that is none, spoils the device for its whole process; a kernel that never
    ends cannot be interrupted by Python. So the process is what is given up, and the next job has a new one.

    Args:
        work: The function; it stands at the top of a module, so that the other process finds it.
    """

    def __init__(self, work: Callable[[Any], Any]) -> None:
        self.work = work
        self.process: Any = None
        self.connection: Connection[Any, Any] | None = None

    def __call__(self, job: Any, seconds: float) -> Any:
        """What the function gives for a job.

        Args:
            job: Its argument; it can be pickled, as can the result.
            seconds: How long it may take, the start of a process included.

        Raises:
            Lost: There is no result, and why.
        """
        connection = self.connection or self._start()
        try:
            connection.send(job)
            if not connection.poll(max(seconds, 0.0)):
                self.end()
                raise Lost(f"no result within {seconds:.0f} s")
            done, result = connection.recv()
        except (EOFError, OSError) as error:
            self.process.join(_PATIENCE)
            code = self.process.exitcode
            self.end()
            raise Lost(f"its process died (exit code {code})") from error
        if not done:
            raise Lost(result)
        return result

    def _start(self) -> Connection[Any, Any]:
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        self.process = context.Process(target=_serve, args=(self.work, there))
        self.process.start()
        there.close()
        self.connection = here
        return here

    def end(self) -> None:
        """Ends the process, whatever it is at."""
        if self.connection is not None:
            self.connection.close()
        if self.process is not None:
            self.process.kill()
            self.process.join()
        self.connection = self.process = None


def _serve(work: Callable[[Any], Any], connection: Connection[Any, Any]) -> None:
    # The terminal interrupts both processes; this one is ended by the other.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        try:
            job = connection.recv()
        except EOFError:  # nobody waits for results any longer
            return
        try:
            answer = True, work(job)
        except Exception as error:
            first = (str(error).strip().splitlines() or [""])[0]
            answer = False, f"{type(error).__name__}: {first}"
        connection.send(answer)
