"""Draws from every class in the same share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["SMALLEST_CLASS", "drawn"]

#: A class is split three to one to one, so fewer images of it would leave a part without any.
SMALLEST_CLASS = 5


def drawn(labels: npt.NDArray[Any], most: int, generator: np.random.Generator) -> Iterator[npt.NDArray[np.int64]]:
    """Numbers of the samples that are used, class by class, in random order: at most so many in all.

    Every class gives the same share, up to rounding, but at least the five that can be split in three.
    """
    share = min(1.0, most / len(labels))
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        yield members[: max(SMALLEST_CLASS, round(share * len(members)))]
