"""The three-way tolerance as an assertion (design rule 2); its numbers are those of ``batchnorm.bench.tolerance``."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from batchnorm.bench.tolerance import RESOLUTION, allowed, double, error

__all__ = ["RESOLUTION", "assert_three_way", "double", "error"]


def assert_three_way(what: str, ours: Tensor, theirs: Tensor, reference: np.ndarray, spread: float = 0.0) -> None:
    """Compare ours with torch's result through the reference.

    ``spread`` is that of the values a mean is taken of, where there is one: a mean near 0 is known to a rounding of
    those values, not of itself (``benchmarks/accuracy.py`` judges it so too).
    """
    assert ours.shape == theirs.shape, f"{what}: shape {tuple(ours.shape)}, torch's {tuple(theirs.shape)}"
    assert ours.dtype == theirs.dtype, f"{what}: {ours.dtype}, torch's {theirs.dtype}"
    limit = allowed(error(theirs, reference), ours.dtype, float(np.abs(reference).max(initial=spread)))
    measured = error(ours, reference)
    assert measured <= limit, f"{what}: error {measured:.3g}, allowed {limit:.3g}"
