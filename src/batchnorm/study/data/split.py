"""Training, validation and test parts, drawn anew per seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .draw import drawn
from .source import Source, load

__all__ = ["SHARES", "Split", "parts", "split"]

SHARES = (0.6, 0.2, 0.2)  # training, validation, test


@dataclass(frozen=True)
class Split:
    """Training, validation and test inputs, images (N, C, height, width) or features (N, F), with labels (N)."""

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return int(self.train[1].max()) + 1

    @property
    def channels(self) -> int:
        """Channels of the images, or features."""
        return self.train[0].shape[1]


def parts(labels: npt.NDArray[np.int64], seed: int, most: int) -> tuple[npt.NDArray[np.int64], ...]:
    """Numbers of the training, validation and test samples: 60/20/20, every class in the same shares.

    Args:
        labels: Labels of all samples.
        seed: Decides who is in which part, and in which order.
        most: At most so many samples in all, up to rounding; but no class is left with fewer than five.
    """
    generator = np.random.default_rng([seed, 0x5EED])
    chosen: tuple[list[npt.NDArray[np.int64]], ...] = ([], [], [])
    for members in drawn(labels, most, generator):
        # At least one in each part, also of a class of five.
        ends = [round(SHARES[0] * len(members)), round((SHARES[0] + SHARES[1]) * len(members))]
        for part, own in zip(chosen, np.split(members, ends), strict=True):
            part.append(own)
    return tuple(generator.permutation(np.concatenate(part)) for part in chosen)


def split(source: Source, seed: int) -> Split:
    """Splits the images of a source 60/20/20 (MNIST-5k: 3000/1000/1000).

    Images are standardised with the mean and standard deviation of the training part's pixels together; one
    pair of numbers, so that pixels that are nearly always black are not blown up.
    """
    images = load(source)
    train, validation, test = parts(images.y, seed, source.samples)
    # In float64: values may be so small that their squares vanish in float32.
    mean = float(images.x[train].mean(dtype=np.float64))
    deviation = float(images.x[train].std(dtype=np.float64))

    def tensors(chosen: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        return torch.from_numpy((images.x[chosen] - mean) / deviation), torch.from_numpy(images.y[chosen])

    return Split(tensors(train), tensors(validation), tensors(test))
