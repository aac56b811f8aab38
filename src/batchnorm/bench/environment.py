"""What rows were measured on."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import PackageNotFoundError, version

import numpy
import torch

from .. import __version__, backends
from ..errors import ArgumentError
from ..machine import l2_bytes, processor
from .faults import allocator
from .faults import fault_seconds as measured_fault_seconds
from .gpu import facts

__all__ = ["Environment", "refuse_a_mixture"]


@dataclass(frozen=True)
class Environment:
    """What a row was measured on.

    Attributes:
        threads: torch's threads.
        processor: The processor's model.
        instruction_set: The widest that torch's kernels use here, such as ``AVX512``.
        l2_bytes: Bytes of one core's L2 cache; on a GPU of the one that all its multiprocessors share.
        system: The operating system and the architecture.
        allocator: What is known of the process's memory: a preloaded malloc, torch's huge pages.
        fault_nanoseconds: What the fault of a small page added to a kernel of torch, measured in the same run.
        backends: What serves this library's layers here: the kernels' names, and what the compiled ones say.
        batchnorm: Version.
        torch: Version.
        numpy: Version.
        python: Version.
        jax: Version; empty where it is not installed.
        date: When, UTC.
        device: Where the layers ran: ``cpu`` or ``cuda``.
        device_name: The GPU's model, with compute capability and multiprocessors; as all that follow, of a GPU alone.
        driver: Version.
        cuda: Version that torch was built with.
        cudnn: Version.
        triton: Version.
    """

    threads: int
    processor: str
    instruction_set: str
    l2_bytes: int
    system: str
    allocator: str
    fault_nanoseconds: float
    backends: str
    batchnorm: str
    torch: str
    numpy: str
    python: str
    jax: str
    date: str
    device: str = "cpu"
    device_name: str = ""
    driver: str = ""
    cuda: str = ""
    cudnn: str = ""
    triton: str = ""

    @property
    def caches(self) -> int:
        """How many caches of ``l2_bytes`` are at work."""
        return self.threads if self.device == "cpu" else 1

    @classmethod
    def measured(cls, device: str = "cpu") -> Environment:
        """Describes this process and machine, with what a page fault costs where that matters."""
        return cls.now(measured_fault_seconds() if device == "cpu" else 0.0, device)

    @classmethod
    def now(cls, fault_seconds: float, device: str = "cpu") -> Environment:
        """Describes this process and machine.

        Args:
            fault_seconds: From :func:`batchnorm.bench.faults.fault_seconds`.
            device: Where the layers run.
        """
        of_gpu = {**facts(), "triton": _installed("triton")} if device == "cuda" else {}
        described = cls(
            threads=torch.get_num_threads(),
            processor=processor(),
            instruction_set=torch.backends.cpu.get_cpu_capability(),
            l2_bytes=l2_bytes(),
            system=f"{platform.system()} {platform.machine()}",
            allocator=allocator(),
            fault_nanoseconds=1e9 * fault_seconds,
            backends=_backends(device),
            batchnorm=__version__,
            torch=torch.__version__,
            numpy=numpy.__version__,
            python=platform.python_version(),
            jax=_installed("jax"),
            date=datetime.now(timezone.utc).strftime("%Y-%m-%d"),
            device=device,
        )
        return replace(described, **of_gpu)


def _backends(device: str) -> str:
    found = backends()
    ours = "cpu" if device == "cpu" else "triton"
    told = "; ".join(f"{each.name}: {each.reason}" for each in found if each.name == ours)
    return f"{' '.join(each.name for each in found if each.available)} ({told})"


@cache
def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


# Rows of one file can be compared with each other only where these are the same.
_SAME = (
    *("device", "processor", "instruction_set", "threads", "allocator", "backends", "batchnorm", "torch"),
    *("device_name", "driver", "cuda", "cudnn", "triton"),
)


def refuse_a_mixture(found: Iterable[Environment], now: Environment) -> None:
    """One file, one machine.

    Args:
        found: Of the rows that are there.
        now: Of those that will come.

    Raises:
        ArgumentError: They differ in what makes times comparable.
    """
    for each in found:
        for name in _SAME:
            before, after = getattr(each, name), getattr(now, name)
            if before != after:
                raise ArgumentError(
                    f"the rows that are there have {name} {before!r}, and this is {after!r}.", "name another --csv."
                )
