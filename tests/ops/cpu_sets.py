"""Which instruction set of the compiled CPU kernels computes, and in how many threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from batchnorm.ops import cpu

if cpu.available:
    from batchnorm.ops.cpu import _kernels

    SETS: tuple[str, ...] = _kernels.instruction_sets()
else:
    SETS = ()


@contextmanager
def computing(instruction_set: str) -> Iterator[None]:
    """Have this instruction set compute in here."""
    before = _kernels.instruction_set()
    _kernels.use(instruction_set)
    try:
        yield
    finally:
        _kernels.use(before)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Have torch compute in this many threads in here."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
