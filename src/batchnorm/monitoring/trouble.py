"""Which values are trouble, and the words for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import sqrt

import numpy as np

from .observation import Numbers, Seen
from .record import Trouble

__all__ = ["DRIFT", "LOST", "RATIO", "troubles_of"]

#: In standard deviations, root mean square over channels; to this comes what so few samples scatter by.
DRIFT = 1.0

#: The mean of n samples is off by at most 1/√n standard deviations: three times that.
SCATTER = 3.0

#: Of variances, either way.
RATIO = 5.0

#: Variances of fewer values a channel tell nothing.
VALUES = 32

#: The share of a layer's channels that are dead or constant.
LOST = 0.5

#: What the initial statistics may still weigh in the running ones.
INITIAL = 0.01


def troubles_of(step: int, seen: Seen, numbers: Numbers, values: Mapping[str, float]) -> Iterator[Trouble]:
    """What is wrong with one layer in one step; of what is not finite nothing else is said."""
    path, channels = seen.path, len(numbers.mean)

    def trouble(rule: str, name: str, message: str, value: float, threshold: float) -> Trouble:
        return Trouble(step, path, rule, name, message, value, threshold)

    if values["nonfinite"]:
        for rule, name, what, arrays in (
            ("", "nonfinite-input", "the input", (numbers.mean, numbers.var)),
            ("BN004", "poisoned-statistics", "the running statistics", _of(numbers, "running_mean", "running_var")),
            ("", "nonfinite-parameters", "gamma or beta", _of(numbers, "weight", "bias")),
        ):
            bad = int(np.any([~np.isfinite(each) for each in arrays], axis=0).sum()) if arrays else 0
            if bad:
                message = f"{what} is NaN or infinite in {bad} of {channels} channels."
                yield trouble(rule, name, message.replace("statistics is", "statistics are"), bad / channels, 0.0)
        return
    if not _settled(seen, numbers):
        return
    limit = DRIFT + SCATTER / sqrt(seen.samples)
    drift, ratio = values.get("drift", 0.0), values.get("variance_ratio", 1.0)
    if drift > limit:
        message = (
            f"the batch lies {drift:.3g} standard deviations from the running mean (healthy: at most {limit:.3g})."
        )
        yield trouble("BN001", "stale-statistics", message, drift, limit)
    elif max(ratio, 1 / max(ratio, 1e-300)) > RATIO and numbers.count >= VALUES:
        message = f"the batch's variance is {ratio:.3g} of the running one (healthy: within a factor of {RATIO:g})."
        yield trouble("BN001", "stale-statistics", message, max(ratio, 1 / max(ratio, 1e-300)), RATIO)
    for name, words in (
        ("dead", "a gamma of at most 0.001"),
        ("constant", "input whose variance is at most a thousandth of eps"),
    ):
        if values.get(name, 0.0) >= LOST:
            count = round(values[name] * channels)
            message = f"{count} of {channels} channels have {words}."
            yield trouble("BN020", "dead-channels", message, values[name], LOST)


def _of(numbers: Numbers, *names: str) -> list[np.ndarray[tuple[int, ...], np.dtype[np.float64]]]:
    return [numbers.state[name] for name in names if name in numbers.state]


def _settled(seen: Seen, numbers: Numbers) -> bool:
    """Whether the running statistics, and gamma, have left behind where they began."""
    tracked = numbers.state.get("num_batches_tracked")
    momentum = seen.layer.momentum
    if tracked is None or not seen.layer.training or momentum == 0:
        return True
    count = float(tracked[0])
    return count * INITIAL >= 1 if momentum is None else (1 - momentum) ** count <= INITIAL
