"""Mends that several rules share."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..nn._base import is_batch_norm
from ..population.recalibrate import recalibrate
from ..surgery.convert import convert_layer
from .evidence import Evidence, Layer
from .finding import Fix, Subject

__all__ = ["conversion", "recalibration"]


def recalibration(evidence: Evidence) -> Fix | None:
    """The statistics of all norms taken anew, over all batches; None where no batches were given."""
    if evidence.training is None or evidence.model is None:
        return None

    def apply(subject: Subject) -> None:
        if subject.batches is None or subject.model is None:
            raise ValueError("the batches cannot be iterated again: give a list or a loader")
        mended = subject.model
        for layer in mended.modules():
            if is_batch_norm(layer) and layer.running_mean is not None and layer.running_var is not None:
                _readable(layer.running_mean, 0.0)
                _readable(layer.running_var, 1.0)
        recalibrate(mended, subject.batches, forward=subject.forward)

    return Fix("takes the statistics of all norms anew over all batches (batchnorm.recalibrate)", apply, "recalibrate")


def _readable(buffer: torch.Tensor, value: float) -> None:
    """What is not finite, or no variance, would reach the layers behind it in the first pass."""
    with torch.no_grad():
        bad = ~torch.isfinite(buffer) | ((buffer < 0) if value else torch.zeros_like(buffer, dtype=torch.bool))
        buffer.masked_fill_(bad, value)


def conversion(layer: Layer, to: str) -> Callable[[Subject], None]:
    """Makes a layer one of another kind, in place (:func:`batchnorm.convert`)."""

    def apply(_: Subject) -> None:
        assert layer.module is not None
        convert_layer(layer.module, to)

    return apply
