"""The clocks: a processor is timed by its own clock, a GPU by events among its work."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

import torch

__all__ = ["EventWatch", "HostWatch", "Watch", "watch_of"]


class Watch(Protocol):
    """What times a few calls.

    Attributes:
        shortest: Seconds that a sample should last at least.
    """

    shortest: float

    def start(self) -> None:
        """The calls come now."""
        ...

    def stop(self) -> float:
        """Waits until what was called is done; gives the seconds since the start."""
        ...


class HostWatch:
    """The processor's clock, for what is done when it returns.

    Args:
        clock: Gives seconds.
    """

    shortest = 200e-6  # far above the clock's own step and the cost of reading it

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self.clock = clock
        self.begun = 0.0

    def _now(self) -> float:
        return time.perf_counter() if self.clock is None else self.clock()

    def start(self) -> None:
        """The calls come now."""
        self.begun = self._now()

    def stop(self) -> float:
        """Seconds since the start."""
        return self._now() - self.begun


class EventWatch:
    """Two events in the stream of a GPU, before the first call and after the last.

    Calls are enqueued one behind the other, as a training step does it: where the processor is slower at launching than
    the GPU at computing, its time is what the events tell.

    Args:
        cuda: ``torch.cuda``, or what takes its place.
    """

    # The first launch and the wait at the end cost tens of microseconds, once a sample: here no more than 1%.
    shortest = 2e-3

    def __init__(self, cuda: Any = torch.cuda) -> None:
        self.cuda = cuda
        self.first, self.last = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)

    def start(self) -> None:
        """Waits for what was there before, so that it does not count."""
        self.cuda.synchronize()
        self.first.record()

    def stop(self) -> float:
        """Waits for the last event; seconds between the two."""
        self.last.record()
        self.last.synchronize()
        return float(self.first.elapsed_time(self.last)) / 1e3


def watch_of(device: str) -> Watch:
    """The clock of a device: ``"cpu"`` or ``"cuda"``."""
    return EventWatch() if device == "cuda" else HostWatch()
