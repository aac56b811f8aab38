"""Putting a feature on a common scale: standardisation, and min-max scaling to 0..1.

Batch normalization is the first, done inside the network. The second is what "normalization" means in much of
the rest of data processing, and is not what the layer does.
"""

import numpy as np
import numpy.typing as npt

from .arrays import Array, double, per_channel


def standardize(x: npt.ArrayLike, mean: npt.ArrayLike, variance: npt.ArrayLike, eps: float = 0.0) -> Array:
    """Standardisation: (x − mean)/√(variance + ε). Mean 0 and variance 1, whatever the unit was.

    A constant feature has variance 0; with ε = 0 it is divided by 1, and so becomes 0.

    Args:
        x: Input, (N, C, *spatial).
        mean: Of the data set, (C,).
        variance: Of the data set, (C,).
        eps: ε, inside the root.

    Example:
        >>> standardize([[1.0], [3.0]], mean=[2.0], variance=[1.0])
        array([[-1.],
               [ 1.]])
    """
    values = double(x)  # (N, C, *spatial)
    std = _std(variance, eps)  # (C,)
    return (values - per_channel(double(mean), values)) / per_channel(std, values)  # (N, C, *spatial)


def unstandardize(y: npt.ArrayLike, mean: npt.ArrayLike, variance: npt.ArrayLike, eps: float = 0.0) -> Array:
    """The inverse: y·√(variance + ε) + mean.

    Args:
        y: What `standardize` gave, (N, C, *spatial).
        mean: Of the data set, (C,).
        variance: Of the data set, (C,).
        eps: ε, inside the root.

    Example:
        >>> unstandardize([[-1.0], [1.0]], mean=[2.0], variance=[4.0])
        array([[0.],
               [4.]])
    """
    values = double(y)  # (N, C, *spatial)
    std = _std(variance, eps)  # (C,)
    return values * per_channel(std, values) + per_channel(double(mean), values)  # (N, C, *spatial)


def _std(variance: npt.ArrayLike, eps: float) -> Array:
    std = np.sqrt(double(variance) + eps)  # (C,)
    return np.where(std == 0, 1.0, std)  # (C,)


def scale_to_unit_interval(x: npt.ArrayLike, minimum: npt.ArrayLike, maximum: npt.ArrayLike) -> Array:
    """Min-max scaling: (x − minimum)/(maximum − minimum). Between 0 and 1, with ends set by two values alone.

    A constant feature is divided by 1, and so becomes 0.

    Args:
        x: Input, (N, C, *spatial).
        minimum: Of the data set, (C,).
        maximum: Of the data set, (C,).

    Example:
        >>> scale_to_unit_interval([[1.0], [2.0], [5.0]], minimum=[1.0], maximum=[5.0]).ravel()
        array([0.  , 0.25, 1.  ])
    """
    values, low = double(x), double(minimum)  # (N, C, *spatial), (C,)
    width = double(maximum) - low  # (C,)
    width = np.where(width == 0, 1.0, width)  # (C,)
    return (values - per_channel(low, values)) / per_channel(width, values)  # (N, C, *spatial)
