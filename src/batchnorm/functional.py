"""``batch_norm``: the one function behind every layer. It checks the arguments and calls the operators."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from . import ops
from .activation import ActivationLike, as_activation
from .errors import ArgumentError, DeviceError, DtypeError, ShapeError, TooFewValuesError
from .ops.eager import statistics_dtype

__all__ = ["Nonfinite", "batch_norm"]

Nonfinite: TypeAlias = Literal["skip", "propagate"]

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


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
    _check_values(input, running_mean, running_var, training, momentum, eps, nonfinite, num_batches_tracked)
    kernel = ops.direct_kernels(input, mask, training)
    # Compiled kernels check the tensors themselves, which Python would take 2 µs for, a sixth of a call on a small
    # input. What may have to be converted first, and a mask, is for Python all the same.
    unchecked = (
        kernel is not None
        and kernel.CHECKS_TENSORS
        and (residual is None or residual.dtype == input.dtype)
        and mask is None
    )
    if not unchecked:
        residual, mask = _checked_tensors(input, running_mean, running_var, weight, bias, training, residual, mask)
    try:
        if training:
            return ops.batch_norm(
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
        return ops.normalize(kernel, input, running_mean, running_var, weight, bias, residual, mask, eps, activation)
    except RuntimeError:
        if unchecked:
            # A kernel refuses before it writes anything; these say in more words what is wrong.
            _checked_tensors(input, running_mean, running_var, weight, bias, training, residual, mask)
        raise


def check_nonfinite(nonfinite: str) -> None:
    """Refuse what is no policy for statistics that are not finite."""
    if nonfinite not in ("skip", "propagate"):
        raise ArgumentError(f"nonfinite={nonfinite!r} means nothing.", 'use "skip" or "propagate".')


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


def _check_values(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float | Tensor | None,
    eps: float,
    nonfinite: str,
    num_batches_tracked: Tensor | None,
) -> None:
    """What no kernel sees, or none could be chosen with."""
    if input.dim() < 2:
        raise ShapeError(
            f"the input has shape {_shape(input)}, and batch norm needs (N, C, *spatial).",
            "add the batch dimension: input.unsqueeze(0).",
        )
    if (running_mean is None) != (running_var is None):
        raise ArgumentError(
            "only one of running_mean and running_var is given.", "give both, or neither for no tracking."
        )
    if not training and running_mean is None:
        raise ArgumentError(
            "evaluation needs running statistics, and running_mean is None.",
            "give running_mean and running_var, or set training=True to normalise by the batch.",
        )
    if nonfinite != "skip":
        check_nonfinite(nonfinite)
    if momentum is None:
        if training and running_mean is not None and num_batches_tracked is None:
            raise ArgumentError(
                "momentum=None is the average over all batches, and nothing counts them.", "give num_batches_tracked."
            )
    elif isinstance(momentum, Tensor) and momentum.dim() != 0:
        raise ArgumentError(f"momentum has shape {_shape(momentum)}.", "give a number, or a 0-d tensor.")
    if eps <= 0 and (training or eps < 0):
        # In evaluation the variance is a constant that the user answers for; a batch's can always be 0.
        raise ArgumentError(f"eps must be positive, but is {eps}.", "use 1e-5, or less for data of tiny variance.")


def _checked_tensors(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    residual: Tensor | None,
    mask: Tensor | None,
) -> tuple[Tensor | None, Tensor | None]:
    """Refuse tensors that do not fit together; residual and mask as the kernels take them."""
    if input.dtype not in _DTYPES:
        raise DtypeError(f"the input is {input.dtype}, which this cannot average.", "convert it: input.float().")
    for name, vector in (
        ("running_mean", running_mean),
        ("running_var", running_var),
        ("weight", weight),
        ("bias", bias),
    ):
        if vector is not None:
            _check_vector(name, vector, input)
    # Under a mask the count lives on the device: one valid value then has variance 0, by the same rule.
    if training and mask is None and input.numel() == input.shape[1] and input.shape[1] > 0:
        raise TooFewValuesError(
            f"the input has shape {_shape(input)}: expected more than 1 value per channel when training.",
            "use a larger batch, drop the last incomplete one (DataLoader(drop_last=True)), or call eval().",
        )
    return (
        None if residual is None else _checked_residual(residual, input),
        None if mask is None else _checked_mask(mask, input),
    )


def _check_device(name: str, tensor: Tensor, input: Tensor) -> None:
    if tensor.device != input.device:
        raise DeviceError(
            f"{name} is on {tensor.device} and the input on {input.device}.",
            f"move one of them, for example with layer.to({str(input.device)!r}).",
        )


def _check_vector(name: str, vector: Tensor, input: Tensor) -> None:
    _check_device(name, vector, input)
    channels = input.shape[1]
    if vector.dim() != 1 or vector.shape[0] != channels:
        raise ShapeError(
            f"{name} has shape {_shape(vector)}, and the input {_shape(input)} has {channels} channels (dimension 1).",
            f"{name} should contain {channels} elements"
            + (", or transpose the input to (N, C, *spatial)." if input.shape[-1] == vector.numel() else "."),
        )
    # Buffers may be of any precision (they are converted); parameters take part in the arithmetic.
    if name.startswith("running"):
        if vector.dtype not in _DTYPES:
            raise DtypeError(f"{name} is {vector.dtype}, which holds no statistics.", f"convert it: {name}.float().")
    elif vector.dtype not in (input.dtype, statistics_dtype(input.dtype)):
        raise DtypeError(
            f"{name} is {vector.dtype} and the input {input.dtype}.",
            f"convert one of them, for example with layer.to({statistics_dtype(input.dtype)}).",
        )


def _checked_residual(residual: Tensor, input: Tensor) -> Tensor:
    _check_device("the residual", residual, input)
    if residual.shape != input.shape:
        raise ShapeError(
            f"the residual has shape {_shape(residual)} and the input {_shape(input)}; nothing is broadcast.",
            "bring the residual to the input's shape.",
        )
    if residual.dtype != input.dtype:
        # Autocast mixes dtypes along a skip connection by design, and would convert here itself.
        if not torch.is_autocast_enabled(input.device.type):
            raise DtypeError(
                f"the residual is {residual.dtype} and the input {input.dtype}.",
                "convert it: residual.to(input.dtype).",
            )
        residual = residual.to(input.dtype)
    return residual


def _checked_mask(mask: Tensor, input: Tensor) -> Tensor:
    _check_device("the mask", mask, input)
    if mask.dtype != torch.bool:
        raise DtypeError(f"the mask is {mask.dtype}.", "convert it: mask.bool(), True where a position is valid.")
    positions = (input.shape[0], *input.shape[2:])
    if mask.dim() == input.dim() and mask.shape[1] == 1:
        mask = mask.squeeze(1)
    if mask.shape != positions:
        raise ShapeError(
            f"the mask has shape {_shape(mask)} and the input {_shape(input)}.",
            f"a mask says which positions are valid, for all channels alike: shape {positions}.",
        )
    return mask
