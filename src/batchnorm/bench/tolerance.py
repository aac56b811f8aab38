"""The three-way tolerance: an error against the float64 reference is at most twice torch's own, above a small floor.

Never "close to torch" alone: torch can be wrong, and is on some inputs (``docs/accuracy.md``).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..reference.arrays import Array

__all__ = ["RESOLUTION", "allowed", "double", "error"]

#: What one rounding in each dtype costs, relative to the largest value: the floor under "twice torch's error", which
#: may be zero by luck.
RESOLUTION = {torch.float64: 1e-14, torch.float32: 5e-7, torch.bfloat16: 4e-3, torch.float16: 5e-4}


def double(tensor: Tensor) -> Array:
    """A tensor's values in float64."""
    values: Array = tensor.detach().double().cpu().numpy()
    return values


def error(value: Tensor, truth: Array) -> float:
    """The largest absolute error; 0 for empty tensors.

    Example:
        >>> error(torch.tensor([1.0, 2.5]), np.array([1.0, 2.0]))
        0.5
    """
    difference = np.abs(double(value) - truth)
    return float(difference.max(initial=0.0))


def allowed(torch_error: float, dtype: torch.dtype, largest: float) -> float:
    """The largest error that passes: twice torch's, plus one rounding of the largest value.

    Args:
        torch_error: The error of torch's own result.
        dtype: Of the result.
        largest: The largest magnitude of the truth.

    Example:
        >>> allowed(1e-6, torch.float32, largest=2.0)
        3e-06
    """
    return 2 * torch_error + RESOLUTION.get(dtype, 0.0) * largest
