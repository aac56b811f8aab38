"""``batch_norm``: it checks the arguments and calls the operators."""

from __future__ import annotations

from torch import Tensor

from ..activation import ActivationLike, as_activation
from ..ops import batch_norm as normalize_by_batch
from ..ops import direct_kernels, normalize
from .checks import Nonfinite, check_values, checked_tensors

__all__ = ["batch_norm"]


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | Tensor | None = 0.1,
    eps: float = 1e-5,
    *,
    activation: ActivationLike = None,
    residual: Tensor | None = None,
    mask: Tensor | None = None,
    nonfinite: Nonfinite = "skip",
    num_batches_tracked: Tensor | None = None,
) -> Tensor:
    r"""Batch normalization, with an activation, a residual and a mask fused in.

    .. math::

        z = \frac{x - \mathrm{E}[x]}{\sqrt{\mathrm{Var}[x] + \epsilon}} \cdot \gamma + \beta + \mathrm{residual},
        \qquad y = \mathrm{activation}(z)

    In training the moments are those of the batch, each channel's over all valid positions of all samples, with the
    biased variance (Ioffe & Szegedy 2015, arXiv 1502.03167, Algorithm 1); the running buffers then move, in place, by
    ``running = (1 − momentum)·running + momentum·batch``, with the *unbiased* variance. In evaluation the moments are
    the running ones (Algorithm 2, line 11).

    Args:
        input: (N, C, \*spatial) of any strides; float32, float64, bfloat16 or float16.
        running_mean: (C,) or None for no tracking; required in evaluation.
        running_var: (C,) or None, together with ``running_mean``.
        weight: gamma, (C,), or None for 1. Parameters have the input's dtype or, for half-precision input, float32.
        bias: beta, (C,), or None for 0.
        training: Whether to normalise by the batch's own moments.
        momentum: The weight of the new batch in the running buffers, as in torch (Keras' is ``1 − momentum``): a
            number, or a 0-d tensor on the input's device. ``None``: the cumulative average of all batches, 1/n for the
            n-th, by ``num_batches_tracked``.
        eps: Added to the variance, inside the root.
        activation: A name (``"relu"``), an :class:`batchnorm.Activation`, a torch activation module, or None.
        residual: Added before the activation; the input's shape, dtype and device.
        mask: Bool, (N, \*spatial) or (N, 1, \*spatial), True where a position is valid. Other positions enter no
            statistic, get no gradient and come out as 0. A channel with one valid value has variance 0; with none,
            nothing is valid and nothing is written.
        nonfinite: ``"skip"``: a batch with a NaN or infinite statistic in any channel leaves the buffers and
            ``num_batches_tracked`` as they were. ``"propagate"``: it enters them, as in torch. Outputs and gradients
            are the same either way.
        num_batches_tracked: 0-d int64, counted up in place with every batch that enters the running buffers.

    Returns:
        (N, C, \*spatial) of the input's dtype.

    Raises:
        ShapeError: Fewer than two dimensions, or sizes that do not fit.
        TooFewValuesError: One value a channel in training, without a mask.
        DeviceError: Tensors on different devices.
        DtypeError: An input that is not floating point, parameters of a dtype that does not go with it, a mask that
            is not bool.
        ArgumentError: Evaluation without running statistics, one of the two without the other, an unknown
            activation or ``nonfinite``, ``momentum=None`` with nothing that counts the batches.

    A forward pass that runs inside a backward pass is the recomputation of activation checkpointing: it leaves the
    running buffers alone, which have seen this batch. Nothing here waits for the device.

    Example:
        >>> import torch
        >>> x = torch.tensor([[1.0, 10.0], [3.0, 30.0]])
        >>> batch_norm(x, None, None, training=True, activation="relu").round(decimals=3)
        tensor([[0., 0.],
                [1., 1.]])
        >>> mean, var = torch.zeros(2), torch.ones(2)
        >>> _ = batch_norm(x, mean, var, training=True, momentum=0.5)
        >>> mean, var
        (tensor([ 1., 10.]), tensor([  1.5000, 100.5000]))
    """
    activation = as_activation(activation)
    check_values(input, running_mean, running_var, training, momentum, eps, nonfinite, num_batches_tracked)
    kernel = direct_kernels(input, mask, training)
    # Compiled kernels check the tensors themselves, which Python would take 2 µs for, a sixth of a call on a small
    # input. What may have to be converted first, and a mask, is for Python all the same.
    unchecked = (
        kernel is not None
        and kernel.CHECKS_TENSORS
        and (residual is None or residual.dtype == input.dtype)
        and mask is None
    )
    if not unchecked:
        residual, mask = checked_tensors(input, running_mean, running_var, weight, bias, training, residual, mask)
    try:
        if training:
            return normalize_by_batch(
                kernel,
                input,
                weight,
                bias,
                residual,
                mask,
                running_mean,
                running_var,
                num_batches_tracked,
                momentum,
                nonfinite == "skip",
                eps,
                activation,
            )
        assert running_mean is not None
        assert running_var is not None
        return normalize(kernel, input, running_mean, running_var, weight, bias, residual, mask, eps, activation)
    except RuntimeError:
        if unchecked:
            # A kernel refuses before it writes anything; these say in more words what is wrong.
            checked_tensors(input, running_mean, running_var, weight, bias, training, residual, mask)
        raise
