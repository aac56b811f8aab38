"""Timing: contenders in turn, round after round, and what the samples say."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .faults import Usage, usage
from .watch import HostWatch, Watch

__all__ = ["Quantiles", "Ratio", "Samples", "interleave", "quantiles", "ratio", "repetitions"]

_RESAMPLES = 1000


@dataclass
class Samples:
    """What a contender took.

    Attributes:
        seconds: Of one call, a value a round.
        calls: How many there were in all those rounds.
        spent: Page faults and processor time of all those calls.
        host_seconds: Of one call, a value a round: until it returned, be it done or enqueued.
    """

    seconds: list[float] = field(default_factory=list)
    calls: int = 0
    spent: Usage = field(default_factory=lambda: Usage(0, 0.0, 0.0))
    host_seconds: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Quantiles:
    """The 20%, 50% and 80% quantiles."""

    low: float
    median: float
    high: float


@dataclass(frozen=True)
class Ratio:
    """A ratio of medians with its 95% interval."""

    estimate: float
    low: float
    high: float


def quantiles(values: Sequence[float]) -> Quantiles:
    """The 20%, 50% and 80% quantiles of a sample.

    >>> quantiles([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    Quantiles(low=2.0, median=3.5, high=5.0)
    """
    low, median, high = np.quantile(np.asarray(values), (0.2, 0.5, 0.8))
    return Quantiles(float(low), float(median), float(high))


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> Ratio:
    """The ratio of two medians, with a 95% bootstrap interval.

    Rounds are drawn again as they were: what disturbed both contenders in one round stays together. The draws are
    seeded, so the same samples give the same interval.

    Args:
        numerator: Seconds a round.
        denominator: Seconds of the other, in the same rounds.

    >>> ratio([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    Ratio(estimate=2.0, low=2.0, high=2.0)
    """
    above, below = np.asarray(numerator), np.asarray(denominator)
    rounds = np.random.default_rng(0).integers(len(above), size=(_RESAMPLES, len(above)))
    found = np.median(above[rounds], axis=1) / np.median(below[rounds], axis=1)
    low, high = np.quantile(found, (0.025, 0.975))
    return Ratio(float(np.median(above) / np.median(below)), float(low), float(high))


def repetitions(run: Callable[[], object], watch: Watch | None = None) -> int:
    """How often to call something so that one sample is no shorter than the clock wants it.

    Args:
        run: What is timed.
        watch: The clock; the processor's where there is none.
    """
    watch = watch or HostWatch()
    best = math.inf
    for _ in range(3):
        watch.start()
        run()
        best = min(best, watch.stop())
        if best > 50 * watch.shortest:  # one call will do, however much of this was a cold start
            break
    return max(1, math.ceil(watch.shortest / max(best, 1e-9)))


def interleave(
    contenders: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    repeat: Mapping[str, int] | None = None,
    warm_up: int = 2,
    watch: Watch | None = None,
    around: Mapping[str, Callable[[], AbstractContextManager[Any]]] | None = None,
) -> dict[str, Samples]:
    """Runs A B C A B C …: what disturbs the machine for a while then disturbs all of them.

    Args:
        contenders: By name, what is called.
        rounds: Samples a contender.
        repeat: Calls a sample, by name; 1 where it has none.
        warm_up: Rounds before those, which do not count.
        watch: The clock; the processor's where there is none.
        around: Makes the context of a sample, by name; it is entered before the clock starts.
    """
    watch = watch or HostWatch()
    samples = {name: Samples() for name in contenders}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for turn in range(-warm_up, rounds):
            for name, run in contenders.items():
                calls = (repeat or {}).get(name, 1)
                with (around or {}).get(name, nullcontext)():
                    before = usage()
                    watch.start()
                    begun = time.perf_counter()
                    for _ in range(calls):
                        run()
                    returned = time.perf_counter() - begun
                    seconds, after = watch.stop(), usage()
                if turn >= 0:
                    sample = samples[name]
                    sample.seconds.append(seconds / calls)
                    sample.host_seconds.append(returned / calls)
                    sample.calls += calls
                    gained = zip(sample.spent, before, after, strict=True)
                    sample.spent = Usage(*(sum_ + end - begin for sum_, begin, end in gained))
    finally:
        if collecting:
            gc.enable()
    return samples
