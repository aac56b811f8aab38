"""How far a norm's running statistics are from those of what it is fed, and how well that is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from .evidence import Layer, LayerRun

__all__ = ["Drift", "drift", "relative"]

_Array: TypeAlias = "np.ndarray[Any, Any]"

# So many standard errors are taken off before a channel counts as off.
_ERRORS = 3.0
# Of fewer batches, what they differ by says too little: samples are counted then.
_BATCHES = 4
_TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, eq=False)
class Drift:
    """The mean and the variance of a layer's input, in terms of its running statistics.

    A value normalised by the running statistics has this mean and this variance, where 0 and 1 are meant: eps is
    within.

    Attributes:
        shift: (C,), the mean's distance in running standard deviations.
        ratio: (C,), variance over running variance.
        shift_error: Standard error of ``shift``, where the variance is right.
        ratio_error: Standard error of the logarithm of ``ratio``.
    """

    shift: _Array
    ratio: _Array
    shift_error: float
    ratio_error: float

    def beyond(self, shift: float, ratio: float) -> int:
        """How many channels have a mean off by more than ``shift``, or a variance by more than a factor ``ratio``.

        That is, by more than these and what sampling explains.
        """
        far = self.shift > shift + _ERRORS * self.shift_error * np.sqrt(np.maximum(self.ratio, 1.0))
        wide = np.abs(np.log(self.ratio)) > np.log(ratio) + _ERRORS * self.ratio_error
        return int((far | wide).sum())

    @property
    def channels(self) -> int:
        """C."""
        return len(self.shift)

    @property
    def typical_shift(self) -> float:
        """The median over the channels."""
        return float(np.median(self.shift))

    @property
    def typical_ratio(self) -> float:
        """Likewise, of the factor: 4 for channels of four times the variance, and for those of a quarter."""
        return float(np.exp(np.median(np.abs(np.log(self.ratio)))))


def relative(layer: Layer, run: LayerRun, mean: _Array, var: _Array) -> tuple[_Array, _Array]:
    """The input's mean less ``mean``, in standard deviations, and its variance over ``var``, a value a channel.

    Both variances are taken with eps, as the layer takes them: where a variance is smaller, it does not matter. NaN
    where something is not finite, or ``var`` is negative.
    """
    eps = layer.eps or 0.0
    with np.errstate(all="ignore"):
        # A channel that is constant, and was, has no variance at all where eps is 0.
        scale = np.where(var < 0, np.nan, np.maximum(var + eps, _TINY))
        shift = (run.mean.numpy() - mean) / np.sqrt(scale)
        ratio = np.maximum(run.var.numpy() + eps, _TINY) / scale
    known = np.isfinite(shift) & np.isfinite(ratio) & (ratio > 0)
    return np.where(known, shift, np.nan), np.where(known, ratio, np.nan)


def drift(layer: Layer, run: LayerRun | None, mean: _Array | None = None, var: _Array | None = None) -> Drift | None:
    """Compares a layer's running statistics with the input of a run.

    The values of a sample are no independent ones, so the error of the input's moments is taken from how the batches
    differ; it includes that of a running average of such batches.

    Args:
        layer: The layer.
        run: What it was fed.
        mean: In place of its running mean.
        var: In place of its running variance.

    Returns:
        None where there is nothing to compare, or it is not finite.
    """
    mean = layer.values("running_mean") if mean is None else mean
    var = layer.values("running_var") if var is None else var
    if run is None or mean is None or var is None or not len(mean) or run.mean.shape != mean.shape:
        return None
    calls = [call for call in run.calls if not call.recomputed and call.mean.shape == run.mean.shape and call.values]
    shift, ratio = relative(layer, run, mean, var)
    if not calls or not np.isfinite(shift).all():
        return None
    eps = layer.eps or 0.0
    own = np.maximum(run.var.numpy() + eps, _TINY)
    means = np.stack([call.mean.numpy() for call in calls])
    logs = np.log(np.maximum(np.stack([call.var.numpy() for call in calls]) + eps, _TINY))
    samples = max(sum(call.shape[0] for call in calls), 1)
    of_mean = of_log = 0.0
    if len(calls) > 1:
        of_mean = float((means.var(0, ddof=1) / own).mean())
        of_log = float(np.median(logs.var(0, ddof=1)))
    if len(calls) < _BATCHES:  # as if a sample were one value, which is the worst it can be
        of_mean, of_log = max(of_mean, len(calls) / samples), max(of_log, 2 * len(calls) / samples)
    momentum = min(layer.momentum or 0.0, 1.0)
    weight = 1 / len(calls) + momentum / (2 - momentum)
    return Drift(
        np.abs(shift),
        ratio,
        (of_mean * weight) ** 0.5,
        (of_log * weight) ** 0.5,
    )
