"""How loss and gradient change along a step against the gradient (Santurkar et al. 2018, Section 3)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from .at_weights import AtWeights, finite, norm

__all__ = ["Landscape", "Walk", "walk_along"]


@dataclass(frozen=True)
class Walk:
    """What was met on the way from weights θ to θ − ηg for several η, g the gradient at θ on the same batch.

    Args:
        lowest: The lowest loss, θ's own included.
        highest: The highest.
        gradient_change: The largest ‖g(θ) − g(θ − ηg)‖.
        beta: The largest ‖g(θ) − g(θ − ηg)‖/‖ηg‖.
        weights: ‖w‖² of the weights of layers at θ that are trained, biases and a norm's gamma and beta left out.
        cosines: Of the angle between g(θ) and g(θ − ηg), by η; 0 where one of them is 0 or not finite.
        losses: The loss at θ, and then by η.
        changes: ‖g(θ) − g(θ − ηg)‖, by η.
        betas: ‖g(θ) − g(θ − ηg)‖/‖ηg‖, by η.
    """

    lowest: float
    highest: float
    gradient_change: float
    beta: float
    weights: float
    cosines: Sequence[float]
    losses: Sequence[float]
    changes: Sequence[float]
    betas: Sequence[float]


def walk_along(function: AtWeights, lengths: Sequence[float]) -> Walk:
    """Walks against the gradient at the model's weights of now, on one batch.

    Args:
        function: The network on that batch.
        lengths: η: what the gradient is multiplied by.
    """
    start = function.weights()
    loss, gradient = function.gradient(start)
    size = norm(gradient)
    losses, changes, betas, cosines = [finite(loss)], [], [], []
    for length in lengths:
        reached, there = function.gradient({name: weight - length * gradient[name] for name, weight in start.items()})
        change = finite(norm({name: gradient[name] - there[name] for name in gradient}))
        losses.append(finite(reached))
        changes.append(change)
        betas.append(finite(change / (length * size)) if size else 0.0)
        cosines.append(_cosine(gradient, there))
    layers = {name: weight for name, weight in start.items() if weight.dim() > 1}
    return Walk(
        min(losses),
        max(losses),
        max(changes),
        max(betas),
        finite(norm(layers) ** 2),
        cosines,
        losses,
        changes,
        betas,
    )


def _cosine(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    product = sum(float((first[name].double() * second[name].double()).sum()) for name in first)
    sizes = norm(first) * norm(second)
    cosine = product / sizes if sizes else 0.0
    return cosine if math.isfinite(cosine) else 0.0


@dataclass
class Landscape:
    """Walks along the gradient every so many updates of a training, on the update's own batch.

    Args:
        model: The network.
        lengths: As :func:`walk_along` takes them.
        every: Updates between two walks; the first is before the first update.
    """

    model: nn.Module
    lengths: Sequence[float]
    every: int
    steps: list[int] = field(default_factory=list)
    walks: list[Walk] = field(default_factory=list)

    def before(self, step: int, images: Tensor, labels: Tensor) -> None:
        """What :func:`batchnorm.study.training.train` calls before each update."""
        if (step - 1) % self.every == 0:
            self.steps.append(step - 1)
            self.walks.append(walk_along(AtWeights(self.model, images, labels, seed=step), self.lengths))
