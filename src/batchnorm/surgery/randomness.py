"""Random numbers in a fork: what draws them in between leaves no trace."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["seeded"]


@contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    """torch's, Python's and NumPy's generators start from ``seed``, and go on afterwards where they were.

    Example:
        >>> with seeded():
        ...     first = torch.rand(1), random.random(), np.random.rand()
        >>> with seeded():
        ...     first == (torch.rand(1), random.random(), np.random.rand())
        True
    """
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
