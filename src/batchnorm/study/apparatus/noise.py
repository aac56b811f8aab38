"""Random, time-varying shift and scale behind the norms of a network, and how far its activations' moments drift."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .at_weights import finite

__all__ = ["Drift", "Moves", "Noise"]

# The least standard deviation of a channel: one that is dead has none, and nothing can be measured in units of it.
_LEAST = 1e-6


@dataclass(frozen=True)
class Noise:
    """The scale and the shift that noise gives to the activations a of a layer in training: y = s·a + t.

    At every pass each channel draws a scale and a shift anew, from uniform distributions around 1 and 0, which hold
    for all of the batch: so at this pass its distribution has another mean and another variance than at the last one.
    Then each example, channel by channel, draws its own around these. In evaluation there is none, as with dropout.

    Args:
        shift: A channel's shift is between minus and plus this.
        scale: A channel's scale is between 1 minus and 1 plus this.
        example: An example's shift and scale are a channel's, plus or minus this at most.
    """

    shift: float
    scale: float
    example: float

    def behind(self, model: nn.Module, paths: Sequence[str]) -> None:
        """Lets it act on what the modules of these paths give; it draws from torch's own random numbers."""
        for path in paths:
            model.get_submodule(path).register_forward_hook(self._act)

    def _act(self, module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        if not module.training:
            return output
        channels = (1, output.shape[1])
        scale, shift = 1 + _around(channels, self.scale), _around(channels, self.shift)
        examples = (output.shape[0], output.shape[1])
        scale, shift = scale + _around(examples, self.example), shift + _around(examples, self.example)
        there = (*examples, *[1] * (output.dim() - 2))
        return output * scale.to(output).reshape(there) + shift.to(output).reshape(there)


def _around(shape: Sequence[int], width: float) -> Tensor:
    return width * (2 * torch.rand(*shape) - 1)


@dataclass
class Drift:
    """How far the moments of what some modules give move during a training, on the same images.

    Every so many updates it looks twice: before an update and after it. What is drawn behind those modules, as by
    :class:`Noise`, differs from look to look; what else the network draws, as for dropout, is the same at each.

    Args:
        model: The network. It is looked at in training mode; its running statistics stay as they are.
        paths: Of the modules; one that is called several times in a pass counts with its last call.
        images: The same at each look.
        every: Updates between two pairs of looks; the first is around the first update.
    """

    model: nn.Module
    paths: Sequence[str]
    images: Tensor
    every: int
    steps: list[int] = field(default_factory=list)
    moments: list[list[tuple[Tensor, Tensor]]] = field(default_factory=list)

    def before(self, step: int, images: Tensor, labels: Tensor) -> None:
        """What :func:`batchnorm.study.training.train` calls before each update."""
        place = (step - 1) % self.every
        if place == 0 or (place == 1 and self.steps and self.steps[-1] == step - 2):
            self.steps.append(step - 1)
            self._look()

    def _look(self) -> None:
        seen: dict[str, Tensor] = {}
        other: list[Tensor] = []  # where the random numbers that are not being drawn now go on

        def swapped(module: nn.Module, inputs: object) -> None:
            now = torch.random.get_rng_state()
            torch.random.set_rng_state(other.pop())
            other.append(now)

        def noted(path: str) -> Callable[[nn.Module, Any, Tensor], None]:
            def note(module: nn.Module, inputs: object, output: Tensor) -> None:
                swapped(module, inputs)
                seen[path] = output.detach()

            return note

        # Hooks run in the order in which they were registered, so noise is in what these see.
        modules = [(path, self.model.get_submodule(path)) for path in self.paths]
        handles = [module.register_forward_pre_hook(swapped) for _, module in modules]
        handles += [module.register_forward_hook(noted(path)) for path, module in modules]
        kept = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        try:
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                torch.manual_seed(1 + len(self.moments))
                other.append(torch.random.get_rng_state())
                torch.manual_seed(0)
                functional_call(self.model, kept, (self.images,))
        finally:
            for handle in handles:
                handle.remove()
        self.moments.append([_moments(seen[path]) for path in self.paths if path in seen])

    def of_updates(self) -> Moves:
        """From before an update to after it."""
        pairs = [
            (place, place + 1)
            for place in range(len(self.steps) - 1)
            if self.steps[place + 1] - self.steps[place] == 1 and self.steps[place] % self.every == 0
        ]
        return self._moves(pairs)

    def of_periods(self) -> Moves:
        """From one pair of looks to the next."""
        first = [place for place, step in enumerate(self.steps) if step % self.every == 0]
        return self._moves(list(pairwise(first)))

    def _moves(self, pairs: Sequence[tuple[int, int]]) -> Moves:
        steps, means, deviations = [], [], []
        for early, late in pairs:
            both = list(zip(self.moments[early], self.moments[late], strict=True))
            steps.append(self.steps[early])
            means.append(_average([(after[0] - before[0]).abs() / before[1] for before, after in both]))
            deviations.append(_average([(after[1] / before[1]).log().abs() for before, after in both]))
        return Moves(steps, means, deviations)


@dataclass(frozen=True)
class Moves:
    """How far the moments moved, averaged over channels and modules.

    Args:
        steps: Updates made before each move.
        means: The change of the mean, in standard deviations before it.
        deviations: The change of the standard deviation, as the absolute logarithm of its factor.
    """

    steps: Sequence[int]
    means: Sequence[float]
    deviations: Sequence[float]


def _moments(values: Tensor) -> tuple[Tensor, Tensor]:
    channels = values.double().transpose(0, 1).flatten(1)
    return channels.mean(1), channels.std(1, correction=0).clamp(min=_LEAST)


def _average(parts: Sequence[Tensor]) -> float:
    return finite(float(torch.cat(list(parts)).mean()))
