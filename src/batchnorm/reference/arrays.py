"""Shapes: how an input (N, C, *spatial) is seen as C rows of observations, and a vector (C,) as an input.

Every algorithm of the reference needs only these three views, so that the shapes on its lines stay true for
fully connected input (N, C), sequences (N, C, L), images (N, C, H, W) and volumes (N, C, D, H, W) alike.
"""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.float64]
Mask: TypeAlias = npt.NDArray[np.bool_]


def double(values: npt.ArrayLike) -> Array:
    """Give `values` as a float64 array: the one door through which numbers enter the reference."""
    return np.asarray(values, dtype=np.float64)


def double_or_none(values: npt.ArrayLike | None) -> Array | None:
    """Give `values` as a float64 array, and None as None."""
    return None if values is None else double(values)


def checked_mask(mask: npt.ArrayLike | None, x: Array) -> Mask | None:
    """Give `mask` as booleans of shape (N, *spatial), or raise ValueError where the shape is another."""
    if mask is None:
        return None
    booleans = np.asarray(mask, dtype=np.bool_)
    expected = (x.shape[0], *x.shape[2:])
    if booleans.shape != expected:
        raise ValueError(
            f"a mask for input of shape {x.shape} has shape (N, *spatial) = {expected}, not {booleans.shape}"
        )
    return booleans


def per_channel(vector: Array, like: Array) -> Array:
    """Shape a vector (C,) as (1, C, 1, ...), so that it meets the channel axis of `like` (N, C, *spatial).

    Example:
        >>> per_channel(np.array([1.0, 2.0]), np.zeros((5, 2, 4, 4))).shape
        (1, 2, 1, 1)
    """
    return vector.reshape(1, -1, *[1] * (like.ndim - 2))


def by_channel(x: Array, mask: Mask | None = None) -> Array:
    """Gather the valid observations of each channel: (N, C, *spatial) becomes (C, M).

    M is the number of valid positions: N·H·W for an image without a mask. What stands at masked positions is
    left behind here, NaN included, and so can enter no sum.

    Example:
        >>> x = np.arange(12.0).reshape(2, 3, 2)
        >>> by_channel(x)
        array([[ 0.,  1.,  6.,  7.],
               [ 2.,  3.,  8.,  9.],
               [ 4.,  5., 10., 11.]])
        >>> by_channel(x, mask=np.array([[True, True], [True, False]]))
        array([[ 0.,  1.,  6.],
               [ 2.,  3.,  8.],
               [ 4.,  5., 10.]])
    """
    channels_first = np.moveaxis(x, 1, 0)  # (C, N, *spatial)
    if mask is None:
        # The size is written out because NumPy cannot infer -1 for an empty batch.
        return channels_first.reshape(x.shape[1], x[:, 0].size)  # (C, M)
    return channels_first[:, mask]  # (C, M)


def valid_only(values: Array, mask: Mask | None) -> Array:
    """Put 0 at the masked positions of `values` (N, C, *spatial)."""
    if mask is None:
        return values
    return np.where(mask[:, np.newaxis], values, 0.0)  # (N, C, *spatial)
