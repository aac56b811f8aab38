"""Batch, layer, instance and group norm: one formula, averaged over different axes.

x̂ = (x − μ)/√(σ² + ε) in each; μ and σ² are taken over the axes named here, with one value for each index of
the others. γ and β are left out: in layer norm they have the shape of what is averaged over, in the other
three the shape (C,).

Sources: layer norm, Ba, Kiros & Hinton (2016, arXiv 1607.06450); instance norm, Ulyanov, Vedaldi & Lempitsky
(2016, arXiv 1607.08022); group norm, Wu & He (2018, arXiv 1803.08494).
"""

import numpy as np
import numpy.typing as npt

from .arrays import Array, double


def standardize_over(x: npt.ArrayLike, axes: tuple[int, ...], eps: float = 1e-5) -> Array:
    """x̂ = (x − μ)/√(σ² + ε), with μ and the biased σ² over `axes`: of the shape of x.

    Args:
        x: Any shape.
        axes: The axes to average over.
        eps: ε, inside the root.

    Example:
        >>> standardize_over([[0.0, 2.0], [10.0, 30.0]], axes=(1,), eps=0.0)
        array([[-1.,  1.],
               [-1.,  1.]])
    """
    values = double(x)
    mean = values.mean(axis=axes, keepdims=True)  # 1 on each of the axes
    variance = np.square(values - mean).mean(axis=axes, keepdims=True)  # 1 on each of the axes
    x_hat: Array = (values - mean) / np.sqrt(variance + eps)  # of the shape of x
    return x_hat


def batch_norm_axes(x: npt.ArrayLike, eps: float = 1e-5) -> Array:
    """Batch norm: over N and space, one mean a channel, C in all.

    Args:
        x: Input, (N, C, *spatial).
        eps: ε, inside the root.

    Example:
        >>> batch_norm_axes([[0.0, 10.0], [2.0, 30.0]], eps=0.0)
        array([[-1., -1.],
               [ 1.,  1.]])
    """
    values = double(x)  # (N, C, *spatial)
    return standardize_over(values, (0, *range(2, values.ndim)), eps)  # (N, C, *spatial)


def layer_norm_axes(x: npt.ArrayLike, eps: float = 1e-5) -> Array:
    """Layer norm as a network for images takes it: over C and space, one mean a sample, N in all.

    Args:
        x: Input, (N, C, *spatial).
        eps: ε, inside the root.

    Example:
        >>> layer_norm_axes([[0.0, 10.0], [2.0, 30.0]], eps=0.0)
        array([[-1.,  1.],
               [-1.,  1.]])
    """
    values = double(x)  # (N, C, *spatial)
    return standardize_over(values, tuple(range(1, values.ndim)), eps)  # (N, C, *spatial)


def instance_norm_axes(x: npt.ArrayLike, eps: float = 1e-5) -> Array:
    """Instance norm: over space, one mean a sample and channel, N·C in all.

    Args:
        x: Input, (N, C, *spatial) with at least one spatial axis.
        eps: ε, inside the root.

    Example:
        >>> instance_norm_axes([[[0.0, 2.0], [10.0, 30.0]]], eps=0.0)
        array([[[-1.,  1.],
                [-1.,  1.]]])
    """
    values = double(x)  # (N, C, *spatial)
    return standardize_over(values, tuple(range(2, values.ndim)), eps)  # (N, C, *spatial)


def group_norm_axes(x: npt.ArrayLike, num_groups: int, eps: float = 1e-5) -> Array:
    """Group norm: over a group of channels and space, one mean a sample and group, N·G in all.

    Args:
        x: Input, (N, C, *spatial).
        num_groups: G, a divisor of C.
        eps: ε, inside the root.

    Example:
        >>> group_norm_axes([[0.0, 2.0, 10.0, 30.0]], num_groups=2, eps=0.0)
        array([[-1.,  1., -1.,  1.]])
    """
    values = double(x)  # (N, C, *spatial)
    n, c, *spatial = values.shape
    if c % num_groups:
        raise ValueError(f"{c} channels do not divide into {num_groups} groups")
    grouped = values.reshape(n, num_groups, c // num_groups, *spatial)  # (N, G, C/G, *spatial)
    x_hat = standardize_over(grouped, tuple(range(2, grouped.ndim)), eps)  # (N, G, C/G, *spatial)
    return x_hat.reshape(values.shape)  # (N, C, *spatial)
