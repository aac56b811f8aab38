"""What a page says of a norm's channels: how far the data are from the running statistics, and which are of no use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from ...report import spoken
from ..drift import relative
from ..evidence import Layer, LayerRun

__all__ = [
    "Drift",
    "Numbers",
    "affine",
    "dead",
    "drift",
    "finite",
    "fixed",
    "lifeless",
    "pooled",
    "saturated",
    "shown_run",
    "span",
]

Numbers: TypeAlias = "np.ndarray[Any, Any]"

# A channel of which more than half of the outputs lie where a sigmoid or tanh is flat.
_MOSTLY = 0.5


@dataclass(frozen=True, eq=False)
class Drift:
    """The data beside the running statistics, a value a channel; NaN where one of the two is not finite.

    Attributes:
        shift: The mean of the data less the running mean, in running standard deviations.
        ratio: The variance of the data over the running variance.
    """

    shift: Numbers
    ratio: Numbers


def shown_run(layer: Layer) -> LayerRun | None:
    """What the batches did there: in training mode, or in evaluation mode where only that reached it."""
    return layer.in_training or layer.in_evaluation


def drift(layer: Layer) -> Drift | None:
    """None without running statistics or batches."""
    run, mean, var = shown_run(layer), layer.values("running_mean"), layer.values("running_var")
    if run is None or mean is None or var is None or run.mean.numel() != mean.size:
        return None
    return Drift(*relative(layer, run, mean, var))


def affine(layer: Layer) -> tuple[Numbers | None, Numbers | None]:
    """Gamma and beta."""
    return layer.values("weight"), layer.values("bias")


def fixed(run: LayerRun) -> Numbers:
    """Which channels give one value whatever comes in: their output, or their input, has no variance."""
    var = run.var.numpy() if run.output_var is None else run.output_var.numpy()
    return np.asarray(var == 0)


def lifeless(run: LayerRun) -> Numbers:
    """Which channels are never above 0: nothing of them passes a ReLU. False where that was not seen."""
    if run.output_high is None:
        return np.zeros(run.mean.numel(), dtype=bool)
    return np.asarray(run.output_high.numpy() <= 0)


def dead(run: LayerRun) -> Numbers:
    """Which channels are one of both."""
    return np.asarray(fixed(run) | lifeless(run))


def saturated(run: LayerRun) -> Numbers:
    """Which channels mostly lie beyond ±4, where sigmoid and tanh are flat."""
    if run.output_far is None:
        return np.zeros(run.mean.numel(), dtype=bool)
    return np.asarray(run.output_far.numpy() > _MOSTLY)


def pooled(mean: Numbers, var: Numbers) -> tuple[float, float]:
    """Mean and standard deviation of all channels together, those left out that are not finite."""
    known = np.isfinite(mean) & np.isfinite(var)
    if not known.any():
        return float("nan"), float("nan")
    return float(mean[known].mean()), float(np.sqrt(max(var[known].mean() + mean[known].var(), 0.0)))


def finite(values: Numbers | Sequence[float]) -> Numbers:
    """Those that are."""
    array = np.asarray(values, dtype=np.float64)
    return array[np.isfinite(array)]


def span(values: Numbers, figures: int = 2) -> str:
    """From where to where they go."""
    known = finite(values)
    if not known.size:
        return "no number"
    low, high = spoken(float(known.min()), figures), spoken(float(known.max()), figures)
    return low if low == high else f"{low} to {high}"
