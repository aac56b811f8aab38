"""``batch_renorm``: batch norm with the correction towards the running statistics, as a change of weight and bias."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..activation import ActivationLike
from ..errors import ArgumentError
from ..ops import eager
from .checks import Nonfinite, check_values, checked_tensors
from .plain import batch_norm
from .recomputed import as_computed_first

__all__ = ["batch_renorm", "check_limits", "renormalizing"]


def check_limits(r_max: float, d_max: float) -> None:
    """Refuse limits between which no correction lies."""
    if not r_max >= 1:
        raise ArgumentError(f"r_max={r_max} is below 1.", "r lies between 1/r_max and r_max; 1 leaves it at 1.")
    if not d_max >= 0:
        raise ArgumentError(f"d_max={d_max} is below 0.", "d lies between -d_max and d_max; 0 leaves it at 0.")


def batch_renorm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | Tensor | None = 0.1,
    eps: float = 1e-5,
    *,
    r_max: float | Tensor = 3.0,
    d_max: float | Tensor = 5.0,
    activation: ActivationLike = None,
    residual: Tensor | None = None,
    mask: Tensor | None = None,
    nonfinite: Nonfinite = "skip",
    num_batches_tracked: Tensor | None = None,
) -> Tensor:
    r"""Batch renormalization: batch norm whose training mode is corrected towards the running statistics.

    .. math::

        \hat{x} = \frac{x - \mu_B}{\sigma_B} \cdot r + d, \qquad
        r = \mathrm{clip}\left(\frac{\sigma_B}{\sigma}, \frac{1}{r_{max}}, r_{max}\right), \quad
        d = \mathrm{clip}\left(\frac{\mu_B - \mu}{\sigma}, -d_{max}, d_{max}\right), \qquad
        y = \mathrm{activation}(\hat{x} \cdot \gamma + \beta + \mathrm{residual})

    with the batch's mean and :math:`\sigma_B = \sqrt{\mathrm{Var}_B + \epsilon}`, and the running mean :math:`\mu` and
    :math:`\sigma = \sqrt{\mathrm{running\_var} + \epsilon}` as they were before this batch (Ioffe 2017, arXiv
    1702.03275, Algorithm 1, which keeps a running :math:`\sigma` instead). r and d are constants in the backward pass.
    Where neither is clipped, this is what evaluation computes. It costs one more pass over the input, for the moments.

    Args:
        input: (N, C, \*spatial) of any strides; float32, float64, bfloat16 or float16.
        running_mean: (C,); required.
        running_var: (C,); required.
        weight: gamma, (C,), or None for 1.
        bias: beta, (C,), or None for 0.
        training: Whether to normalise by the batch's moments and the correction. Evaluation is that of
            :func:`batchnorm.functional.batch_norm`.
        momentum: The weight of the new batch in the running buffers, which move as those of plain batch norm do.
        eps: Added to the variances, inside the roots.
        r_max: 1 or more, a number or a 0-d tensor on the input's device. 1, with ``d_max`` 0, is plain batch norm.
        d_max: 0 or more, a number or a 0-d tensor on the input's device.
        activation: A name, an :class:`batchnorm.Activation`, a torch activation module, or None.
        residual: Added before the activation; the input's shape, dtype and device.
        mask: Bool, (N, \*spatial) or (N, 1, \*spatial), True where a position is valid.
        nonfinite: ``"skip"`` or ``"propagate"``.
        num_batches_tracked: 0-d int64, counted up in place with every batch that enters the running buffers.

    Returns:
        (N, C, \*spatial) of the input's dtype.

    Raises:
        ArgumentError: No running statistics, an ``r_max`` below 1, a ``d_max`` below 0.
        ShapeError, TooFewValuesError, DeviceError, DtypeError: As :func:`batchnorm.functional.batch_norm`.

    The recomputation of activation checkpointing takes the r and d of the first pass, whose running statistics have
    moved since. It knows a pass by its batch's moments, among the last 16 of these running statistics: of several on
    the same batch it takes the last one's.

    Example:
        >>> x = torch.tensor([[1.0], [5.0]])
        >>> mean, var = torch.tensor([1.0]), torch.tensor([1.0])
        >>> batch_renorm(x, mean, var, training=True).round(decimals=3)  # (x − 1) / 1: r = 2, d = 2
        tensor([[0.],
                [4.]])
        >>> batch_renorm(x, mean, var, training=True, r_max=1.0, d_max=0.0).round(decimals=3)
        tensor([[-1.],
                [ 1.]])
    """
    if training:
        weight, bias = renormalizing(
            input,
            running_mean,
            running_var,
            weight,
            bias,
            eps,
            r_max,
            d_max,
            residual,
            mask,
        )
    return batch_norm(
        input,
        running_mean,
        running_var,
        weight,
        bias,
        training,
        momentum,
        eps,
        activation=activation,
        residual=residual,
        mask=mask,
        nonfinite=nonfinite,
        num_batches_tracked=num_batches_tracked,
    )


def renormalizing(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    r_max: float | Tensor,
    d_max: float | Tensor,
    residual: Tensor | None,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The weight γ·r and the bias β + γ·d with which plain batch norm computes batch renormalization in training.

    Their gradients lead to γ and β; no other leads anywhere. Nothing has moved when this raises.
    """
    if running_mean is None or running_var is None:
        raise ArgumentError(
            "batch renormalization corrects towards the running statistics, and there are none.",
            "give running_mean and running_var, or use plain batch norm.",
        )
    if not isinstance(r_max, Tensor) and not isinstance(d_max, Tensor):
        check_limits(r_max, d_max)
    # What is left out here (momentum, nonfinite) the plain function refuses, also before anything moves.
    check_values(input, running_mean, running_var, True, 0.0, eps, "skip", None)
    _, mask = checked_tensors(input, running_mean, running_var, weight, bias, True, residual, mask)
    mean, var = _moments(input.detach(), mask)
    r_limits: Any = (1.0 / r_max, r_max)
    d_limits: Any = (-d_max, d_max)
    # Detached: constants to derivatives of every order and direction.
    running_std = (eager.as_statistics(running_var.detach(), input.dtype) + eps).sqrt()
    r = ((var + eps).sqrt() / running_std).clamp(*r_limits)
    d = ((mean - eager.as_statistics(running_mean.detach(), input.dtype)) / running_std).clamp(*d_limits)
    r, d = as_computed_first(running_mean, mean, var, eps, r, d)
    return (
        r if weight is None else weight * r,
        _plus(bias, d if weight is None else weight * d),
    )


def _plus(bias: Tensor | None, shift: Tensor) -> Tensor:
    return shift if bias is None else bias + shift


def _moments(input: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and biased variance a channel, whoever is watching; no operator survives a transform or forward mode."""
    watched = (
        torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0 or torch.jit.is_tracing()  # type: ignore[attr-defined]
    )
    moments = eager.moments if watched else torch.ops.batchnorm.moments
    _, mean, var = moments(input, mask)
    return mean, var
