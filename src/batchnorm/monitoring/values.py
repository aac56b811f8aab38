"""From what was seen of a step to the values that are written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import inf, isnan, log
from typing import Any, TypeAlias

import numpy as np

from .observation import Numbers, Observation, Seen
from .record import Record, Trouble
from .trouble import troubles_of

__all__ = ["CONSTANT", "DEAD", "record"]

Array: TypeAlias = "np.ndarray[Any, Any]"

#: A gamma of at most this scales what it multiplies to nothing.
DEAD = 1e-3

#: A channel of at most this variance, in parts of eps, is constant: normalised, less than 0.032 is left of it.
CONSTANT = 1e-3


def record(observation: Observation) -> Record:
    """All values of an observed step; this waits for the device."""
    layers: dict[str, dict[str, float]] = {}
    gamma: dict[str, Array] = {}
    beta: dict[str, Array] = {}
    troubles: list[Trouble] = []
    channels: dict[str, tuple[float, int]] = {}
    for seen, numbers in observation.numbers():
        values = _values(seen, numbers)
        layers[seen.path] = values
        for name, parameters in (("weight", gamma), ("bias", beta)):
            if name in numbers.state:
                parameters[seen.path] = numbers.state[name]
        for name in _SHARES:
            if name in values:
                total, count = channels.get(name, (0.0, 0))
                channels[name] = (total + values[name] * len(numbers.mean), count + len(numbers.mean))
        troubles += troubles_of(observation.step, seen, numbers, values)
    summary, worst = _summary(layers)
    summary |= {name: total / count for name, (total, count) in channels.items() if count}
    summary["troubles"] = float(len(troubles))
    return Record(observation.step, layers, gamma, beta, summary, worst, tuple(troubles))


def _values(seen: Seen, numbers: Numbers) -> dict[str, float]:
    values: dict[str, float] = {}
    state, eps = numbers.state, float(getattr(seen.layer, "eps", 0.0))
    finite = np.isfinite(numbers.mean) & np.isfinite(numbers.var)
    for tensor in ("running_mean", "running_var", "weight", "bias"):
        if tensor in state:
            finite &= np.isfinite(state[tensor])
    if numbers.count >= 2:
        # What is not finite makes NaN of whatever is computed of it, and is written so.
        with np.errstate(all="ignore"):
            unbiased = numbers.var * (numbers.count / (numbers.count - 1))
            if _moved(state):
                scale = state["running_var"] + eps
                drift = np.abs(numbers.mean - state["running_mean"]) / np.sqrt(scale)
                values["drift"] = float(np.sqrt(np.mean(drift**2)))
                values["largest_drift"] = float(drift.max())
                values["variance_ratio"] = float(np.exp(np.mean(np.log((unbiased + eps) / scale))))
            values["smallest_variance"] = float(unbiased.min())
            values["largest_variance"] = float(unbiased.max())
        values["constant"] = float(np.mean(numbers.var <= CONSTANT * eps))
    if "weight" in state:
        values["dead"] = float(np.mean(np.abs(state["weight"]) <= DEAD))
    values["nonfinite"] = float(np.mean(~finite))
    values |= {f"gradient_{name}": rms for name, rms in numbers.gradient.items()}
    return values


def _moved(state: Mapping[str, Array]) -> bool:
    """Whether there are running statistics, and they are not those of no batches."""
    if "running_mean" not in state or "running_var" not in state:
        return False
    return bool((state["running_mean"] != 0).any() or (state["running_var"] != 1).any())


_SHARES = ("dead", "constant", "nonfinite")

# What is worse the larger it is.
_WORSE: dict[str, Callable[[float], float]] = {
    "drift": lambda value: value,
    "largest_drift": lambda value: value,
    "variance_ratio": lambda value: abs(log(value)) if value > 0 else inf,
    "smallest_variance": lambda value: -value,
    "largest_variance": lambda value: value,
}


def _summary(layers: Mapping[str, Mapping[str, float]]) -> tuple[dict[str, float], dict[str, str]]:
    """The worst of all layers, NaN before anything else, and whose it is."""
    summary, worst = {}, {}
    for name, badness in _WORSE.items():
        found = {path: values[name] for path, values in layers.items() if name in values}
        if found:
            bad = {path: inf if isnan(value) else badness(value) for path, value in found.items()}
            path = max(bad, key=bad.__getitem__)
            summary[name], worst[name] = found[path], path
    gradients = [values["gradient_input"] for values in layers.values() if "gradient_input" in values]
    if len(gradients) > 1 and gradients[-1]:
        summary["gradient_first_to_last"] = gradients[0] / gradients[-1]
    return summary, worst
