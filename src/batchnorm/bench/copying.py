"""What memory can do: a copy of plain bytes, by which the limit of everything else is told."""

from __future__ import annotations

import torch

from .environment import Environment
from .row import COPY, UNAVAILABLE, Row, with_times
from .timing import interleave, repetitions
from .watch import watch_of

__all__ = ["measure_copy"]


def measure_copy(size: int, rounds: int, environment: Environment) -> Row:
    """Times the copy of ``size`` bytes into memory that is there: twice as many move.

    Args:
        size: Bytes; far more than the caches.
        rounds: Samples.
        environment: What it runs on.
    """
    source = torch.empty(size // 4, device=environment.device).normal_()
    target = torch.zeros_like(source)
    watch = watch_of(environment.device)

    def run() -> None:
        target.copy_(source)

    run()
    repeat = repetitions(run, watch)
    samples = interleave({COPY: run}, rounds, repeat={COPY: repeat}, watch=watch)[COPY]
    row = Row(
        case=COPY,
        networks="",
        shape="",
        format="contiguous",
        dtype="float32",
        mode=COPY,
        activation="",
        residual=False,
        contender=COPY,
        status=UNAVAILABLE,
        environment=environment,
        tensor_bytes=size,
    )
    return with_times(row, samples, None, repeat)
