"""The batch normalizing transform in training mode: forward and backward.

Training: Algorithm 1 of Ioffe & Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing
Internal Covariate Shift" (2015, arXiv 1502.03167), followed by what this library fuses to it: a residual that
is added, and an activation. Backward: the chain rule of its section 3, once step by step as the paper has it
and once collapsed, the way a kernel computes it.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .activation import Activation, as_activation
from .arrays import (
    Array,
    Mask,
    by_channel,
    checked_mask,
    double,
    double_or_none,
    per_channel,
    valid_only,
)
from .moments import Moments, moments


@dataclass(frozen=True, eq=False)
class Saved:
    """What is kept for the backward pass: the input, vectors, and no second tensor of the input's size.

    x̂ and z are computed again from these. The residual counts only where the derivative of the activation
    needs z itself; for relu and its kind one bit an element would do.
    """

    x: Array  # (N, C, *spatial)
    mask: Mask | None  # (N, *spatial)
    count: int
    mean: Array  # (C,)
    invstd: Array  # (C,)  1 / √(σ² + ε)
    weight: Array | None  # (C,)  γ
    bias: Array | None  # (C,)  β
    residual: Array | None  # (N, C, *spatial)
    activation: Activation


class Gradients(NamedTuple):
    """The gradients of the loss; None for an argument that was not given."""

    x: Array  # (N, C, *spatial)
    weight: Array | None  # (C,)
    bias: Array | None  # (C,)
    residual: Array | None  # (N, C, *spatial)


def standardized(x: Array, mean: Array, invstd: Array, mask: Mask | None = None) -> Array:
    """Algorithm 1, line 3: x̂ = (x − mean)·invstd, (N, C, *spatial), with 0 at masked positions."""
    x_hat = (x - per_channel(mean, x)) * per_channel(invstd, x)  # (N, C, *spatial)
    return valid_only(x_hat, mask)  # (N, C, *spatial)


def scaled_and_shifted(x_hat: Array, weight: Array | None, bias: Array | None, residual: Array | None) -> Array:
    """Algorithm 1, line 4, and the residual: z = γ·x̂ + β + residual, (N, C, *spatial)."""
    z = x_hat
    if weight is not None:
        z = z * per_channel(weight, x_hat)  # (N, C, *spatial)
    if bias is not None:
        z = z + per_channel(bias, x_hat)  # (N, C, *spatial)
    if residual is not None:
        z = z + residual  # (N, C, *spatial)
    return z


def forward(
    x: npt.ArrayLike,
    weight: npt.ArrayLike | None = None,
    bias: npt.ArrayLike | None = None,
    *,
    residual: npt.ArrayLike | None = None,
    mask: npt.ArrayLike | None = None,
    activation: str | Activation = "identity",
    eps: float = 1e-5,
) -> tuple[Array, Saved]:
    """Batch normalization in training mode: Algorithm 1, residual, activation.

    μ = 1/m Σ x;  σ² = 1/m Σ (x − μ)²;  x̂ = (x − μ)/√(σ² + ε);  z = γ·x̂ + β + residual;  y = activation(z).

    Masked positions do not enter m, μ or σ², and give 0. With one valid position the variance is 0 and y is
    activation(β + residual); with none nothing is valid, and mean and variance are 0.

    Args:
        x: Input, (N, C, *spatial).
        weight: γ, (C,); None means 1.
        bias: β, (C,); None means 0.
        residual: Added before the activation, of the shape of x.
        mask: Valid positions are True, (N, *spatial).
        activation: A name with its default parameters, or an `Activation`.
        eps: ε, inside the root.

    Returns:
        y, of the shape of x, and what `backward` needs.

    Example:
        >>> y, saved = forward([[1.0], [3.0]], weight=[2.0], bias=[0.5], eps=0.0)
        >>> y
        array([[-1.5],
               [ 2.5]])
        >>> saved.mean, saved.invstd
        (array([2.]), array([1.]))
    """
    values = double(x)  # (N, C, *spatial)
    statistics = moments(values, mask)  # (C,)  Algorithm 1, lines 1 and 2
    return normalized(
        values,
        statistics,
        weight=weight,
        bias=bias,
        residual=residual,
        mask=mask,
        activation=activation,
        eps=eps,
    )


def normalized(
    x: Array,
    statistics: Moments,
    *,
    weight: npt.ArrayLike | None,
    bias: npt.ArrayLike | None,
    residual: npt.ArrayLike | None,
    mask: npt.ArrayLike | None,
    activation: str | Activation,
    eps: float,
) -> tuple[Array, Saved]:
    """Algorithm 1, lines 3 and 4, residual and activation, with whatever statistics are given."""
    saved = Saved(
        x=x,  # (N, C, *spatial)
        mask=checked_mask(mask, x),  # (N, *spatial)
        count=statistics.count,
        mean=statistics.mean,  # (C,)
        invstd=1.0 / np.sqrt(statistics.variance + eps),  # (C,)
        weight=double_or_none(weight),  # (C,)
        bias=double_or_none(bias),  # (C,)
        residual=double_or_none(residual),  # (N, C, *spatial)
        activation=as_activation(activation),
    )
    x_hat = standardized(x, saved.mean, saved.invstd, saved.mask)  # (N, C, *spatial)  line 3
    z = scaled_and_shifted(x_hat, saved.weight, saved.bias, saved.residual)  # (N, C, *spatial)  line 4
    return valid_only(saved.activation.value(z), saved.mask), saved  # (N, C, *spatial)


def identity_parameters(statistics: Moments, eps: float = 1e-5) -> tuple[Array, Array]:
    """Give the γ = √(σ² + ε) and β = μ with which the transform is the identity (section 3 of the paper).

    Example:
        >>> x = np.array([[1.0], [4.0], [7.0]])
        >>> weight, bias = identity_parameters(moments(x))
        >>> y, _ = forward(x, weight, bias)
        >>> bool(np.allclose(y, x))
        True
    """
    return np.sqrt(statistics.variance + eps), statistics.mean  # (C,), (C,)


def gradient_before_activation(dy: Array, saved: Saved, x_hat: Array) -> Array:
    """∂ℓ/∂z = ∂ℓ/∂y · activation'(z): (N, C, *spatial), with 0 at masked positions.

    The residual is added just before the activation, so this is its gradient as well.
    """
    z = scaled_and_shifted(x_hat, saved.weight, saved.bias, saved.residual)  # (N, C, *spatial)
    return valid_only(dy * saved.activation.derivative(z), saved.mask)  # (N, C, *spatial)


def gradient_sums(dz: Array, x_hat: Array, mask: Mask | None = None) -> tuple[Array, Array]:
    """Σ dz and Σ dz·x̂, (C,) each: the gradients of β and γ, and all that one element needs of the others.

    Across processes these two vectors are what is summed, together with the count.

    Args:
        dz: ∂ℓ/∂z, (N, C, *spatial).
        x_hat: x̂, (N, C, *spatial).
        mask: Valid positions are True, (N, *spatial).

    Example:
        >>> gradient_sums(dz=np.array([[1.0], [2.0]]), x_hat=np.array([[-1.0], [1.0]]))
        (array([3.]), array([1.]))
    """
    sum_dz = by_channel(dz, mask).sum(axis=1)  # (C,)
    sum_dz_x_hat = by_channel(dz * x_hat, mask).sum(axis=1)  # (C,)
    return sum_dz, sum_dz_x_hat


def collected(dz: Array, dx: Array, sum_dz: Array, sum_dz_x_hat: Array, saved: Saved) -> Gradients:
    """Give each argument that was there its gradient, and the others None."""
    return Gradients(
        x=valid_only(dx, saved.mask),  # (N, C, *spatial)
        weight=None if saved.weight is None else sum_dz_x_hat,  # (C,)
        bias=None if saved.bias is None else sum_dz,  # (C,)
        residual=None if saved.residual is None else dz,  # (N, C, *spatial)
    )


def backward(dy: npt.ArrayLike, saved: Saved) -> Gradients:
    """Backward of `forward`, collapsed to two sums a channel.

    dz = dy·activation'(z);  dβ = Σ dz;  dγ = Σ dz·x̂;  dresidual = dz;
    dx = γ/√(σ² + ε) · (dz − 1/m Σ dz − x̂ · 1/m Σ dz·x̂).

    Args:
        dy: ∂ℓ/∂y, (N, C, *spatial).
        saved: From `forward`.

    Example:
        >>> x = [[1.0], [2.0], [6.0]]
        >>> _, saved = forward(x, weight=[2.0], bias=[0.0], eps=0.0)
        >>> gradients = backward([[1.0], [0.0], [0.0]], saved)
        >>> gradients.x.round(4)
        array([[ 0.3527],
               [-0.4409],
               [ 0.0882]])
        >>> gradients.weight.round(4), gradients.bias
        (array([-0.9258]), array([1.]))
    """
    upstream = double(dy)  # (N, C, *spatial)
    x_hat = standardized(saved.x, saved.mean, saved.invstd, saved.mask)  # (N, C, *spatial)
    dz = gradient_before_activation(upstream, saved, x_hat)  # (N, C, *spatial)
    sum_dz, sum_dz_x_hat = gradient_sums(dz, x_hat, saved.mask)  # (C,), (C,)
    dx = input_gradient(dz, x_hat, sum_dz, sum_dz_x_hat, saved)  # (N, C, *spatial)
    return collected(dz, dx, sum_dz, sum_dz_x_hat, saved)


def input_gradient(dz: Array, x_hat: Array, sum_dz: Array, sum_dz_x_hat: Array, saved: Saved) -> Array:
    """The gradient of the input, (N, C, *spatial): dx = γ·invstd·(dz − 1/m Σ dz − x̂ · 1/m Σ dz·x̂).

    The first term is the path through x itself, the second the path through the mean, the third the path
    through the variance.
    """
    m = max(saved.count, 1)
    through_mean = per_channel(sum_dz / m, dz)  # (1, C, 1, ...)
    through_variance = x_hat * per_channel(sum_dz_x_hat / m, dz)  # (N, C, *spatial)
    scale = saved.invstd if saved.weight is None else saved.weight * saved.invstd  # (C,)
    return per_channel(scale, dz) * (dz - through_mean - through_variance)  # (N, C, *spatial)


def backward_by_chain_rule(dy: npt.ArrayLike, saved: Saved) -> Gradients:
    """Backward of `forward`, one line for each line of the paper's chain rule (section 3).

    Same result as `backward`, with the intermediate gradients of the variance and the mean left visible.

    Args:
        dy: ∂ℓ/∂y, (N, C, *spatial).
        saved: From `forward`.

    Example:
        >>> _, saved = forward([[1.0], [2.0], [6.0]], weight=[2.0], eps=0.0)
        >>> backward_by_chain_rule([[1.0], [0.0], [0.0]], saved).x.round(4)
        array([[ 0.3527],
               [-0.4409],
               [ 0.0882]])
    """
    m = max(saved.count, 1)
    upstream = double(dy)  # (N, C, *spatial)
    deviation = valid_only(saved.x - per_channel(saved.mean, saved.x), saved.mask)  # (N, C, *spatial)  x − μ
    x_hat = deviation * per_channel(saved.invstd, saved.x)  # (N, C, *spatial)
    dz = gradient_before_activation(upstream, saved, x_hat)  # (N, C, *spatial)

    # ∂ℓ/∂x̂ = ∂ℓ/∂z · γ
    dx_hat = dz if saved.weight is None else dz * per_channel(saved.weight, dz)  # (N, C, *spatial)
    # ∂ℓ/∂σ² = Σ ∂ℓ/∂x̂ · (x − μ) · (−1/2) · (σ² + ε)^(−3/2)
    dvariance = by_channel(dx_hat * deviation).sum(axis=1) * (-0.5 * saved.invstd**3)  # (C,)
    # ∂ℓ/∂μ = Σ ∂ℓ/∂x̂ · (−1/√(σ² + ε)) + ∂ℓ/∂σ² · 1/m Σ −2(x − μ)
    dmean = -by_channel(dx_hat).sum(axis=1) * saved.invstd  # (C,)
    # The second term is 0, since deviations from the mean sum to 0. It stands here because the paper has it.
    dmean = dmean + dvariance * (-2.0 * by_channel(deviation).sum(axis=1) / m)  # (C,)
    # ∂ℓ/∂x = ∂ℓ/∂x̂ · 1/√(σ² + ε) + ∂ℓ/∂σ² · 2(x − μ)/m + ∂ℓ/∂μ · 1/m
    dx = dx_hat * per_channel(saved.invstd, dz)  # (N, C, *spatial)
    dx = dx + per_channel(dvariance, dz) * 2.0 * deviation / m  # (N, C, *spatial)
    dx = dx + per_channel(dmean, dz) / m  # (N, C, *spatial)
    # ∂ℓ/∂γ = Σ ∂ℓ/∂z · x̂  and  ∂ℓ/∂β = Σ ∂ℓ/∂z
    sum_dz, sum_dz_x_hat = gradient_sums(dz, x_hat, saved.mask)  # (C,), (C,)
    return collected(dz, dx, sum_dz, sum_dz_x_hat, saved)
