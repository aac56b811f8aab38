"""The largest learning rate at which a network learns: searched on a logarithmic grid, from above."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..claim import Report
from ..data import Split
from ..training import Recipe, train

__all__ = ["WORST", "Found", "at_the_end", "largest", "learning_below", "search"]

#: What a loss that is larger, or no number, is kept as.
WORST = 1e6

_IMAGES = 1200  # training images that a run is judged on at its end, or all where there are fewer
_SHARE = 0.1  # of the loss of guessing, how far below it a network is that has learnt something
_ERRORS = 3.0  # standard errors of guessing, on these images, that it must be below it besides


@dataclass(frozen=True)
class Found:
    """What a search tried and found.

    Args:
        rates: Those tried, in order.
        losses: The loss at the end of each, in evaluation mode.
        largest: The largest usable one, or None where there is none.
    """

    rates: Sequence[float]
    losses: Sequence[float]
    largest: float | None


def search(
    build: Callable[[], nn.Module],
    parts: Split,
    grid: Sequence[float],
    *,
    stride: int,
    steps: int,
    seed: int,
    report: Report,
) -> Found:
    """Trains a network at rates of a grid that goes down, as :func:`largest` chooses them.

    Args:
        build: Gives the network as it is before training.
        parts: The data, of which it sees the training images alone.
        grid: From the largest rate down.
        stride: How many rates down the scan goes at a time.
        steps: Updates of each run, at a constant rate.
        seed: Decides the order of the images.
        report: Told where it is.
    """
    rates: list[float] = []
    losses: list[float] = []
    # Training images decide: the other parts are not looked at, but for an image that train() needs.
    blind = Split(parts.train, *((images[:1], labels[:1]) for images, labels in (parts.validation, parts.test)))

    def usable(place: int) -> bool:
        report(len(rates) / (1 + len(grid) / stride), f"rate {grid[place]:.3g}")
        recipe = Recipe(grid[place], steps=steps, every=steps)
        model = build()
        # Looked at once, after the last update: a run that is finite leaves the weights that it ended with.
        history = train(model, blind, recipe, seed=seed, report=lambda done, note: None)
        rates.append(grid[place])
        losses.append(WORST if history.diverged else at_the_end(model, *parts.train))
        return losses[-1] < learning_below(parts.train[1])

    place = largest(usable, len(grid), stride)
    return Found(rates, losses, None if place is None else grid[place])


def largest(usable: Callable[[int], bool], count: int, stride: int) -> int | None:
    """The first usable of ``count`` rates that go down from the largest, or None where it met none.

    Every ``stride``-th is tried from the largest on; between the first that is usable and the one tried before it,
    bisection finds a usable rate whose next larger one is not. Rates need not be usable without a gap: what is
    found is the upper end of one range of them.
    """
    tried = range(0, count, stride)
    good = next((place for place in tried if usable(place)), None)
    if not good:  # None, or the largest
        return good
    bad = good - stride
    while good - bad > 1:
        middle = (good + bad) // 2
        if usable(middle):
            good = middle
        else:
            bad = middle
    return good


def learning_below(labels: Tensor) -> float:
    """The loss below which a network has learnt more than how frequent each class is.

    To know the frequencies alone gives the entropy of the labels. A network must be a tenth below it, and by three
    standard errors of such guessing on the images judged, which matters where nearly all labels are of one class.
    """
    shares = labels.bincount().double() / len(labels)
    surprise = [-math.log(share) for share in shares.tolist() if share > 0]
    weights = [share for share in shares.tolist() if share > 0]
    entropy = math.fsum(weight * value for weight, value in zip(weights, surprise, strict=True))
    spread = math.fsum(weight * (value - entropy) ** 2 for weight, value in zip(weights, surprise, strict=True))
    return entropy - max(_SHARE * entropy, _ERRORS * math.sqrt(spread / min(_IMAGES, len(labels))))


@torch.no_grad()
def at_the_end(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Mean loss of a trained network on the first images, in evaluation mode; :data:`WORST` where it is not finite.

    In training mode batch norm has the statistics of the batch it is judged on, which flatters it at large rates.
    """
    model.eval()
    judged, wanted = images[:_IMAGES], labels[:_IMAGES]
    outputs = torch.cat([model(judged[place : place + 500]) for place in range(0, len(judged), 500)])
    mean = nn.functional.cross_entropy(outputs, wanted).item()
    return min(mean, WORST) if math.isfinite(mean) else WORST
