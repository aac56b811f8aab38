"""The transform in evaluation mode: the statistics are given and constant.

Ioffe & Szegedy (2015), Algorithm 2, line 11.
"""

import numpy as np
import numpy.typing as npt

from .activation import Activation
from .arrays import Array, by_channel, checked_mask, double, per_channel
from .moments import Moments
from .transform import (
    Gradients,
    Saved,
    collected,
    gradient_before_activation,
    gradient_sums,
    normalized,
    standardized,
)


def forward_evaluation(
    x: npt.ArrayLike,
    mean: npt.ArrayLike,
    variance: npt.ArrayLike,
    weight: npt.ArrayLike | None = None,
    bias: npt.ArrayLike | None = None,
    *,
    residual: npt.ArrayLike | None = None,
    mask: npt.ArrayLike | None = None,
    activation: str | Activation = "identity",
    eps: float = 1e-5,
) -> tuple[Array, Saved]:
    """Batch normalization in evaluation mode: the statistics are given and constant (Algorithm 2, line 11).

    y = activation((x − mean)/√(variance + ε)·γ + β + residual)

    Args:
        x: Input, (N, C, *spatial).
        mean: Of the population, (C,).
        variance: Of the population, (C,).
        weight: γ, (C,); None means 1.
        bias: β, (C,); None means 0.
        residual: Added before the activation, of the shape of x.
        mask: Valid positions are True, (N, *spatial).
        activation: A name with its default parameters, or an `Activation`.
        eps: ε, inside the root.

    Example:
        >>> y, _ = forward_evaluation([[1.0], [4.0]], mean=[2.0], variance=[4.0], activation="relu", eps=0.0)
        >>> y
        array([[0.],
               [1.]])
    """
    values = double(x)  # (N, C, *spatial)
    count = by_channel(values, checked_mask(mask, values)).shape[1]
    given = Moments(count, double(mean), double(variance) * max(count, 1))  # (C,)
    return normalized(
        values, given, weight=weight, bias=bias, residual=residual, mask=mask, activation=activation, eps=eps
    )


def scale_and_shift(
    mean: npt.ArrayLike,
    variance: npt.ArrayLike,
    weight: npt.ArrayLike | None = None,
    bias: npt.ArrayLike | None = None,
    *,
    eps: float = 1e-5,
) -> tuple[Array, Array]:
    """With statistics that are constant the layer is one affine map a channel (Algorithm 2, line 11).

    scale = γ/√(variance + ε);  shift = β − scale·mean;  y = scale·x + shift. This is what folds into the
    convolution or linear layer before the norm.

    Args:
        mean: Of the population, (C,).
        variance: Of the population, (C,).
        weight: γ, (C,); None means 1.
        bias: β, (C,); None means 0.
        eps: ε, inside the root.

    Example:
        >>> scale_and_shift(mean=[2.0], variance=[4.0], weight=[3.0], bias=[1.0], eps=0.0)
        (array([1.5]), array([-2.]))
    """
    scale = 1.0 / np.sqrt(double(variance) + eps)  # (C,)
    if weight is not None:
        scale = scale * double(weight)  # (C,)
    shift = -scale * double(mean)  # (C,)
    if bias is not None:
        shift = shift + double(bias)  # (C,)
    return scale, shift


def backward_evaluation(dy: npt.ArrayLike, saved: Saved) -> Gradients:
    """Backward of `forward_evaluation`: the statistics are constants, so only the direct path is left.

    dz = dy·activation'(z);  dx = γ/√(variance + ε)·dz;  dγ = Σ dz·x̂;  dβ = Σ dz;  dresidual = dz.

    Args:
        dy: ∂ℓ/∂y, (N, C, *spatial).
        saved: From `forward_evaluation`.

    Example:
        >>> _, saved = forward_evaluation([[1.0], [4.0]], mean=[2.0], variance=[4.0], weight=[3.0], eps=0.0)
        >>> gradients = backward_evaluation([[1.0], [1.0]], saved)
        >>> gradients.x, gradients.weight
        (array([[1.5],
               [1.5]]), array([0.5]))
    """
    upstream = double(dy)  # (N, C, *spatial)
    x_hat = standardized(saved.x, saved.mean, saved.invstd, saved.mask)  # (N, C, *spatial)
    dz = gradient_before_activation(upstream, saved, x_hat)  # (N, C, *spatial)
    scale = saved.invstd if saved.weight is None else saved.weight * saved.invstd  # (C,)
    dx = per_channel(scale, dz) * dz  # (N, C, *spatial)
    sum_dz, sum_dz_x_hat = gradient_sums(dz, x_hat, saved.mask)  # (C,), (C,)
    return collected(dz, dx, sum_dz, sum_dz_x_hat, saved)
