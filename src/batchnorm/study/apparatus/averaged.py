"""Networks of the study that look at averaged images, for claims of many runs: a quarter of the pixels, and cheaper."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ..data import Split
from ..networks import fully_connected
from ..subjects import Subject

__all__ = ["Averaged", "Dense"]

_FIRST = "images averaged over 2×2 pixels, then "


def _average() -> nn.AvgPool2d:
    # Rounded up, so that an image of one pixel stays one.
    return nn.AvgPool2d(2, ceil_mode=True)


@dataclass(frozen=True)
class Averaged(Subject):
    """Another subject, behind an average over 2×2 pixels. It belongs to the network: the user's own has none.

    Args:
        subject: What comes after the average.
    """

    subject: Subject

    @property
    def description(self) -> str:
        """The average, and what comes after it."""
        return _FIRST + self.subject.description

    def build(self, parts: Split, seed: int) -> nn.Module:
        """Both, one after the other."""
        return nn.Sequential(_average(), self.subject.build(parts, seed))


@dataclass(frozen=True)
class Dense(Subject):
    """Fully connected ReLU layers on averaged images, batch norm before each ReLU: one value an image in a channel.

    Args:
        hidden: Units of the hidden layers.
    """

    hidden: tuple[int, ...]

    @property
    def description(self) -> str:
        """Widths."""
        widths = ", ".join(str(width) for width in self.hidden)
        return (
            f"{_FIRST}{len(self.hidden)} fully connected layers of {widths} units, each with batch norm before its "
            "ReLU, then a linear layer"
        )

    def build(self, parts: Split, seed: int) -> nn.Module:
        """The layers, with He's initialisation."""
        average = _average()
        inputs = average(parts.train[0][:1]).numel()
        layers = fully_connected((inputs, *self.hidden, parts.classes), activation="relu", norm="before", seed=seed)
        return nn.Sequential(average, layers)
