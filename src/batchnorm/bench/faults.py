"""Page faults: what fresh memory costs a process."""

from __future__ import annotations

import mmap
import os
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch

__all__ = ["Usage", "allocator", "fault_seconds", "fault_share", "usage"]

_BYTES = 64 << 20
_TRIALS = 5
# The system attributes time to kernel and program by ticks of up to 10 ms: less than this says nothing.
_SHORTEST = 0.05


class Usage(NamedTuple):
    """What this process has used so far, all threads together.

    Attributes:
        faults: Page faults that needed no disk.
        kernel: Seconds of processor time in the system's kernel.
        program: Seconds of processor time elsewhere.
    """

    faults: float
    kernel: float
    program: float


def usage() -> Usage:
    """What this process has used so far; zeros where the system does not say."""
    if sys.platform == "win32":
        return Usage(0, 0.0, 0.0)
    import resource  # noqa: PLC0415 - not on Windows

    found = resource.getrusage(resource.RUSAGE_SELF)
    return Usage(found.ru_minflt, found.ru_stime, found.ru_utime)


def fault_share(spent: Usage) -> float | None:
    """The share of processor time that went into page faults: that of the kernel, where there were any.

    Faults are not multiplied by the cost of one: a huge page costs a hundred times as much as a small one, and nobody
    says which came. Kernels of arithmetic ask nothing else of the system but memory, so its time is that of mapping,
    zeroing and giving back pages.

    Args:
        spent: What was used meanwhile.

    Returns:
        From 0 to 1; None where too little time was spent to say.

    Example:
        >>> fault_share(Usage(faults=1000, kernel=1.0, program=3.0)), fault_share(Usage(0, 0.0, 0.001))
        (0.25, 0.0)
    """
    if not spent.faults:
        return 0.0
    seconds = spent.kernel + spent.program
    return spent.kernel / seconds if seconds >= _SHORTEST else None


def fault_seconds(size: int = _BYTES) -> float:
    """Seconds that the fault of a small page adds to a kernel of torch that writes fresh memory, with its threads.

    Fresh pages are filled twice by torch; the first time costs more, by the faults. The median of a few trials.

    Args:
        size: Bytes to fill.
    """
    costs = []
    for _ in range(_TRIALS):
        pages = fresh_pages(size)
        tensor = torch.frombuffer(pages, dtype=torch.uint8)
        before, start = usage().faults, time.perf_counter()
        tensor.fill_(1)
        first, faults = time.perf_counter() - start, usage().faults - before
        start = time.perf_counter()
        tensor.fill_(2)
        second = time.perf_counter() - start
        del tensor
        pages.close()
        if faults:
            costs.append(max(first - second, 0.0) / faults)
    return sorted(costs)[len(costs) // 2] if costs else 0.0


def fresh_pages(size: int) -> mmap.mmap:
    """Memory that nothing has touched yet, in small pages where the system lets one choose."""
    if sys.platform == "win32":
        return mmap.mmap(-1, size)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        pages.madvise(mmap.MADV_NOHUGEPAGE)
    return pages


def allocator() -> str:
    """What the environment says about the process's memory: a preloaded malloc, and torch's huge pages."""
    preloaded = os.environ.get("LD_PRELOAD", "") or os.environ.get("DYLD_INSERT_LIBRARIES", "")
    found = [Path(library).name for library in preloaded.replace(":", " ").split()]
    if os.environ.get("THP_MEM_ALLOC_ENABLE") == "1":
        found.append("THP_MEM_ALLOC_ENABLE=1")
    return " ".join(found)
