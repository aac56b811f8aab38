"""What torch says of a GPU: its name and versions, the memory that a step takes, the kernels that it launches."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from ..errors import ArgumentError

__all__ = ["DEVICES", "check", "count_kernels", "driver", "facts", "launches", "peak_bytes"]

DEVICES = ("cpu", "cuda")
_PROFILED = 3  # steps


def check(device: str) -> None:
    """Refuses a device that is not there.

    Raises:
        ArgumentError: It is none of :data:`DEVICES`, or torch sees no GPU.
    """
    if device not in DEVICES:
        raise ArgumentError(f"no device is named {device}.", f"use {' or '.join(DEVICES)}.")
    if device == "cuda" and not torch.cuda.is_available():
        raise ArgumentError("torch sees no GPU on this machine.", "name the device cpu, or use another machine.")


def facts(cuda: Any = torch.cuda) -> dict[str, Any]:
    """What rows say of the GPU in use: the fields of :class:`batchnorm.bench.environment.Environment` about it.

    Args:
        cuda: ``torch.cuda``, or what takes its place.
    """
    found = cuda.get_device_properties(cuda.current_device())
    return {
        "l2_bytes": int(found.L2_cache_size),
        "device_name": f"{found.name} ({found.major}.{found.minor}, {found.multi_processor_count} multiprocessors)",
        "driver": driver(),
        "cuda": torch.version.cuda or f"hip {torch.version.hip}",
        "cudnn": str(torch.backends.cudnn.version() or ""),
    }


def driver() -> str:
    """The driver's version, by its own tool; empty where that does not say."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ""
    command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return (done.stdout.splitlines() or [""])[0].strip()


def peak_bytes(step: Callable[[], object], cuda: Any = torch.cuda) -> int:
    """The most bytes that torch had allocated during a step, above what it had before it.

    Args:
        step: What is watched; run once.
        cuda: ``torch.cuda``, or what takes its place.
    """
    cuda.synchronize()
    before = cuda.memory_allocated()
    cuda.reset_peak_memory_stats()
    step()
    cuda.synchronize()
    return int(cuda.max_memory_allocated() - before)


def launches(step: Callable[[], object]) -> float | None:
    """Kernels that a step launches, by the profiler; None where it sees none.

    Args:
        step: What is watched, warmed up.
    """
    # Else the library below the profiler announces itself on stderr.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    try:
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            for _ in range(_PROFILED):
                step()
            torch.cuda.synchronize()
    except RuntimeError:  # a machine may keep the profiler from the GPU
        return None
    return count_kernels(profiler.events() or ()) / _PROFILED or None


def count_kernels(events: Iterable[Any]) -> int:
    """How many of a profiler's events are kernels: on the GPU, and neither copying nor setting memory."""
    on_gpu = [event.name for event in events if event.device_type.name == "CUDA"]
    return sum(not name.startswith(("Memcpy", "Memset")) for name in on_gpu)
