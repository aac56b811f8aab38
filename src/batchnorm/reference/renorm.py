"""Batch renormalization: batch statistics corrected towards the running ones that inference uses.

Ioffe, "Batch Renormalization: Towards Reducing Minibatch Dependence in Batch-Normalized Models" (2017,
arXiv 1702.03275), Algorithm 1. The paper keeps a running standard deviation; here it is √(running_var + ε),
so that the buffers are those of the plain layer.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .activation import Activation, as_activation
from .arrays import Array, checked_mask, double, double_or_none, per_channel, valid_only
from .moments import Moments, moments
from .transform import (
    Gradients,
    Saved,
    collected,
    gradient_before_activation,
    gradient_sums,
    scaled_and_shifted,
    standardized,
)


class RenormSaved(NamedTuple):
    """What is kept for the backward pass: that of the plain transform, and the two corrections."""

    saved: Saved
    r: Array  # (C,)
    d: Array  # (C,)


def renorm_corrections(
    batch: Moments,
    running_mean: npt.ArrayLike,
    running_var: npt.ArrayLike,
    *,
    r_max: float = 3.0,
    d_max: float = 5.0,
    eps: float = 1e-5,
) -> tuple[Array, Array]:
    """Give r = clip(σ_B/σ, 1/r_max, r_max) and d = clip((μ_B − μ)/σ, −d_max, d_max).

    σ_B = √(batch variance + ε) and σ = √(running_var + ε). Both are constants in the backward pass.

    Args:
        batch: The statistics of the batch.
        running_mean: μ, (C,).
        running_var: σ² without ε, (C,).
        r_max: 1 or more; 1 with d_max 0 is plain batch normalization.
        d_max: 0 or more.
        eps: ε, inside the roots.

    Example:
        >>> batch = Moments(4, mean=np.array([3.0]), m2=np.array([64.0]))
        >>> renorm_corrections(batch, [1.0], [1.0], eps=0.0)
        (array([3.]), array([2.]))
    """
    batch_std = np.sqrt(batch.variance + eps)  # (C,)  σ_B
    running_std = np.sqrt(double(running_var) + eps)  # (C,)  σ
    r = np.clip(batch_std / running_std, 1.0 / r_max, r_max)  # (C,)
    d = np.clip((batch.mean - double(running_mean)) / running_std, -d_max, d_max)  # (C,)
    return r, d


def renorm_forward(
    x: npt.ArrayLike,
    r: npt.ArrayLike,
    d: npt.ArrayLike,
    weight: npt.ArrayLike | None = None,
    bias: npt.ArrayLike | None = None,
    *,
    residual: npt.ArrayLike | None = None,
    mask: npt.ArrayLike | None = None,
    activation: str | Activation = "identity",
    eps: float = 1e-5,
) -> tuple[Array, RenormSaved]:
    """Batch renormalization in training mode: x̂ = (x − μ_B)/σ_B · r + d, then as in `forward`.

    Where neither r nor d was clipped, x̂ = (x − μ)/σ with the running statistics: what inference computes.

    Args:
        x: Input, (N, C, *spatial).
        r: From `renorm_corrections`, (C,).
        d: From `renorm_corrections`, (C,).
        weight: γ, (C,); None means 1.
        bias: β, (C,); None means 0.
        residual: Added before the activation, of the shape of x.
        mask: Valid positions are True, (N, *spatial).
        activation: A name with its default parameters, or an `Activation`.
        eps: ε, inside the root.

    Example:
        >>> y, _ = renorm_forward([[1.0], [3.0]], r=[2.0], d=[1.0], eps=0.0)
        >>> y.ravel()
        array([-1.,  3.])
    """
    values = double(x)  # (N, C, *spatial)
    valid = checked_mask(mask, values)  # (N, *spatial)
    batch = moments(values, valid)  # (C,)  μ_B, σ_B²
    saved = Saved(
        x=values,  # (N, C, *spatial)
        mask=valid,  # (N, *spatial)
        count=batch.count,
        mean=batch.mean,  # (C,)
        invstd=1.0 / np.sqrt(batch.variance + eps),  # (C,)  1/σ_B
        weight=double_or_none(weight),  # (C,)
        bias=double_or_none(bias),  # (C,)
        residual=double_or_none(residual),  # (N, C, *spatial)
        activation=as_activation(activation),
    )
    kept = RenormSaved(saved, double(r), double(d))
    z = scaled_and_shifted(_corrected(kept), saved.weight, saved.bias, saved.residual)  # (N, C, *spatial)
    return valid_only(saved.activation.value(z), valid), kept  # (N, C, *spatial)


def _corrected(kept: RenormSaved) -> Array:
    """x̂ = (x − μ_B)/σ_B · r + d, (N, C, *spatial); at masked positions d, which goes no further."""
    x = kept.saved.x
    plain = standardized(x, kept.saved.mean, kept.saved.invstd, kept.saved.mask)  # (N, C, *spatial)
    return plain * per_channel(kept.r, x) + per_channel(kept.d, x)  # (N, C, *spatial)


def renorm_backward(dy: npt.ArrayLike, kept: RenormSaved) -> Gradients:
    """Backward of `renorm_forward`, with r and d held constant.

    With u = (x − μ_B)/σ_B and x̂ = r·u + d:
    dx = γ·r/σ_B · (dz − 1/m Σ dz − u · 1/m Σ dz·u);  dγ = Σ dz·x̂;  dβ = Σ dz.

    Args:
        dy: ∂ℓ/∂y, (N, C, *spatial).
        kept: From `renorm_forward`.

    Example:
        >>> _, kept = renorm_forward([[1.0], [2.0], [6.0]], r=[2.0], d=[1.0], weight=[1.0], eps=0.0)
        >>> renorm_backward([[1.0], [0.0], [0.0]], kept).x.round(4).ravel()
        array([ 0.3527, -0.4409,  0.0882])
    """
    saved = kept.saved
    m = max(saved.count, 1)
    x_hat = _corrected(kept)  # (N, C, *spatial)
    dz = gradient_before_activation(double(dy), saved, x_hat)  # (N, C, *spatial)
    u = standardized(saved.x, saved.mean, saved.invstd, saved.mask)  # (N, C, *spatial)
    sum_dz, sum_dz_u = gradient_sums(dz, u, saved.mask)  # (C,), (C,)
    scale = kept.r * saved.invstd  # (C,)
    if saved.weight is not None:
        scale = scale * saved.weight  # (C,)
    dx = dz - per_channel(sum_dz / m, dz) - u * per_channel(sum_dz_u / m, dz)  # (N, C, *spatial)
    dx = per_channel(scale, dz) * dx  # (N, C, *spatial)
    # Σ dz·x̂ = r·Σ dz·u + d·Σ dz, from the sums that are there already.
    dweight = kept.r * sum_dz_u + kept.d * sum_dz  # (C,)
    return collected(dz, dx, sum_dz, dweight, saved)
