"""Derivatives by central differences: what every written-out backward pass is compared with."""

from collections.abc import Callable

import numpy as np


def central_differences(function: Callable[[np.ndarray], float], at: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """The gradient of a scalar function; its error is of the order of step² and of rounding/step."""
    gradient = np.empty_like(at)
    for index in np.ndindex(at.shape):
        above, below = at.copy(), at.copy()
        above[index] += step
        below[index] -= step
        gradient[index] = (function(above) - function(below)) / (2 * step)
    return gradient
