"""Training for a fixed number of updates, judged by its last weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import fmean

import torch
from torch import Tensor, nn

from ...population import recalibrate
from ..claim import Report, Value
from ..data import Split
from ..learning import baseline
from ..training import Recipe, accuracy, shuffled, train

__all__ = ["to_the_end"]

# Parts of a run whose mean training loss is kept.
_PARTS = 10


def to_the_end(
    model: nn.Module,
    parts: Split,
    recipe: Recipe,
    *,
    seed: int,
    report: Report,
    anew: bool = False,
    before: Callable[[int, Tensor, Tensor], None] = lambda step, images, labels: None,
    order: Callable[[Tensor, torch.Generator], Tensor] = shuffled,
) -> dict[str, Value]:
    """Trains a model and keeps what its last weights do, so that no arm gains from stopping at a lucky look.

    Args:
        model: In training mode.
        parts: The data.
        recipe: How; its one look at the validation split is the last.
        seed: As :func:`batchnorm.study.training.train` takes it, and so the rest.
        report: Told where it is.
        anew: Whether the test split is also looked at with statistics of all training images, taken anew.
        before: Called before each update.
        order: Of the images of an epoch.

    Returns:
        "best" (validation), "test", "train" (accuracies with the learned statistics), "test anew" where asked for,
        "losses" (mean over each tenth of the run; empty where it diverged), "diverged", and the baseline.
    """

    def each(step: int, images: Tensor, labels: Tensor) -> None:
        if step % max(1, recipe.steps // _PARTS) == 0:
            report(step / recipe.steps, f"step {step}/{recipe.steps}")
        before(step, images, labels)

    history = train(model, parts, recipe, seed=seed, report=report, before=each, order=order)
    values: dict[str, Value] = {
        "best": history.validation[-1],
        "test": history.test,
        "train": 0.0 if history.diverged else accuracy(model, *parts.train),
        "losses": [] if history.diverged else _tenths(history.losses),
        "diverged": history.diverged,
        **baseline(parts),
    }
    if anew:
        if not history.diverged:
            recalibrate(model, parts.train[0].split(500))
        values["test anew"] = 0.0 if history.diverged else accuracy(model, *parts.test)
    return values


def _tenths(losses: Sequence[float]) -> list[float]:
    edges = [round(place * len(losses) / _PARTS) for place in range(_PARTS + 1)]
    return [fmean(losses[start:end]) for start, end in pairwise(edges) if end > start]
