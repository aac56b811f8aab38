"""Random numbers in a fork: what draws them in between leaves no trace."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["remembered", "seeded"]


def remembered() -> Callable[[], None]:
    """What puts torch's generators of all devices, Python's and NumPy's back as they are now; also twice.

    A GPU that nobody has used yet is left alone: to ask for its generator would start it, and a process that has one
    started cannot be forked any more, as loaders do.

    Example:
        >>> restore = remembered()
        >>> first = torch.rand(1)
        >>> restore()
        >>> bool(torch.rand(1) == first)
        True
    """
    python, numpy, own = random.getstate(), np.random.get_state(), torch.get_rng_state()
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None

    def restore() -> None:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(own)
        if gpus:
            torch.cuda.set_rng_state_all(gpus)
        if mps is not None:
            torch.mps.set_rng_state(mps)

    return restore


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
    restore = remembered()
    try:
        # Not torch.manual_seed: a GPU that is started later would begin with this seed and not with the user's.
        torch.default_generator.manual_seed(seed)
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed_all(seed)
        if torch.backends.mps.is_available():
            torch.mps.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        yield
    finally:
        restore()
