"""The three-way tolerance: our error against the float64 reference is at most twice torch's own (design rule 2)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# What one rounding in each dtype costs, relative to the largest value: the floor under "twice torch's error", which
# may be zero by luck.
RESOLUTION = {torch.float64: 1e-14, torch.float32: 5e-7, torch.bfloat16: 4e-3, torch.float16: 5e-4}


def double(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().cpu().numpy()


def error(value: Tensor, reference: np.ndarray) -> float:
    """The largest absolute error; 0 for empty tensors."""
    difference = np.abs(double(value) - reference)
    return float(difference.max(initial=0.0))


def assert_three_way(what: str, ours: Tensor, theirs: Tensor, reference: np.ndarray) -> None:
    """Compare ours with torch's result through the reference."""
    assert ours.shape == theirs.shape, f"{what}: shape {tuple(ours.shape)}, torch's {tuple(theirs.shape)}"
    assert ours.dtype == theirs.dtype, f"{what}: {ours.dtype}, torch's {theirs.dtype}"
    floor = RESOLUTION.get(ours.dtype, 0.0) * float(np.abs(reference).max(initial=0.0))
    allowed = 2 * error(theirs, reference) + floor
    measured = error(ours, reference)
    assert measured <= allowed, f"{what}: error {measured:.3g}, allowed {allowed:.3g}"
