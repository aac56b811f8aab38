"""Networks of the study that look at averaged images, for claims of many runs: a quarter of the pixels, and cheaper."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from ..data import Split
from ..subjects import Subject

__all__ = ["Averaged"]

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
        average = _average()
        images, labels = parts.train
        # The other needs the shape of what it gets, which one image tells.
        small = replace(parts, train=(average(images[:1]), labels))
        return nn.Sequential(average, self.subject.build(small, seed))
