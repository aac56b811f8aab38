"""The same operators by torch's own kernels, which move fewer bytes than plain operations; masks excepted.

What torch's kernels do not keep is put right here: the output has the input's strides, statistics of half-precision
input are float32, the variance is exact where it is far below eps, and nothing is kept but what the contract says.
Each function computes what the one of its name in :mod:`batchnorm.ops.eager` specifies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..activation import Activation
from . import eager
from .bits import no_bits, pack_bits, unpack_bits
from .running import training_by

__all__ = ["backward", "forward", "normalize", "normalize_in_graph", "serves", "train"]

CHECKS_TENSORS = False  # as in eager

_aten = torch.ops.aten

# dz from dy and z in one pass each; Activation.derivative is the formula.
_ACTIVATION_BACKWARD: dict[str, Callable[..., Tensor]] = {
    "relu": lambda dy, z: _aten.threshold_backward(dy, z, 0.0),
    "leaky_relu": lambda dy, z, slope: _aten.leaky_relu_backward(dy, z, slope, False),
    "relu6": lambda dy, z: _aten.hardtanh_backward(dy, z, 0.0, 6.0),
    "hardtanh": _aten.hardtanh_backward,
    "silu": _aten.silu_backward,
    "hardswish": _aten.hardswish_backward,
    "gelu": _aten.gelu_backward,
    "gelu_tanh": lambda dy, z: _aten.gelu_backward(dy, z, approximate="tanh"),
    "sigmoid": lambda dy, z: _aten.sigmoid_backward(dy, torch.sigmoid(z)),
    "tanh": lambda dy, z: _aten.tanh_backward(dy, torch.tanh(z)),
    "elu": lambda dy, z, alpha: _aten.elu_backward(dy, alpha, 1.0, 1.0, False, z),
}


def serves(input: Tensor, mask: Tensor | None) -> bool:
    """Whether torch's kernels can do this: no mask, and two values a channel at the least."""
    return mask is None and input.numel() >= 2 * max(input.shape[1], 1)


_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def _as_rows(x: Tensor) -> Tensor:
    """``x`` as (N·spatial, C) where it is a sequence stored (N, L, C) and seen as (N, C, L), else as it is.

    torch would walk such a one value by value.
    """
    if x.dim() == 3 and not x.is_contiguous():
        rows = x.transpose(1, 2)
        if rows.is_contiguous():
            return rows.reshape(-1, x.shape[1])
    return x


def _unambiguous(x: Tensor) -> Tensor:
    """``x``, contiguous or channels-last, with the strides that such a tensor has where no dimension is of size 1.

    A dimension of size 1 may have any stride. By it torch's backward kernel takes one layout for another, and mixes up
    channels without a word (seen: gradients off by more than their size).
    """
    if not (x.is_contiguous() or _is_channels_last(x)):
        x = x.contiguous()
    order = list(range(x.dim())) if x.is_contiguous() else [0, *range(2, x.dim()), 1]
    strides, step = [0] * x.dim(), 1
    for dim in reversed(order):
        strides[dim] = step
        step *= max(x.shape[dim], 1)
    return x if list(x.stride()) == strides else x.as_strided(x.size(), strides)


def _is_channels_last(x: Tensor) -> bool:
    return x.dim() in _FORMATS and x.is_contiguous(memory_format=_FORMATS[x.dim()])


def _like_input(output: Tensor, input: Tensor) -> Tensor:
    if output.dim() != input.dim():
        return output.view(input.shape[0], input.shape[2], input.shape[1]).transpose(1, 2)
    if output.stride() == input.stride():
        return output
    expected = torch.empty_like(input)  # strides as elementwise operators of torch give them
    return output if output.stride() == expected.stride() else expected.copy_(output)


def normalize(
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    eps: float,
    activation: Activation,
) -> Tensor:
    """As :func:`eager.normalize`, by ``torch.batch_norm``, in place where that saves a tensor."""
    z = _like_input(_evaluate(input, mean, var, weight, bias, eps), input)
    output = _activate_in_place(z, residual, activation)
    return output if mask is None else output.masked_fill_(~mask.unsqueeze(1), 0.0)


def normalize_in_graph(
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    eps: float,
    activation: Activation,
) -> Tensor:
    """As :func:`normalize`, out of place: differentiable, and exported as standard nodes."""
    # Masked at the door too: a NaN in the padding must not reach a gradient, not even times 0.
    z = _evaluate(eager.masked(input, mask), mean, var, weight, bias, eps)
    if residual is not None:
        z = z + eager.masked(residual, mask)
    return eager.masked(_narrow(activation(z), input), mask)


def _activate_in_place(z: Tensor, residual: Tensor | None, activation: Activation) -> Tensor:
    if residual is not None:
        z += residual
    return _narrow(activation.in_place(z), z)


def _narrow(output: Tensor, like: Tensor) -> Tensor:
    # Autocast widens some activations of half precision; the output has the input's dtype.
    return output if output.dtype == like.dtype else output.to(like.dtype)


def _evaluate(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    # torch wants all per-channel vectors of one dtype; for half-precision input that is float32.
    weight, bias = (None if vector is None else eager.as_statistics(vector, x.dtype) for vector in (weight, bias))
    mean, var = eager.as_statistics(mean, x.dtype), eager.as_statistics(var, x.dtype)
    rows = _as_rows(x)
    z = torch.batch_norm(rows, weight, bias, mean, var, False, 0.0, eps, False)
    return z if rows.dim() == x.dim() else z.view(x.shape[0], x.shape[2], x.shape[1]).transpose(1, 2)


def forward(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    eps: float,
    activation: Activation,
    keep_bits: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As :func:`eager.forward`; ``serves(input, mask)`` must hold."""
    z, mean, unbiased = _train(input, weight, bias, eps)
    if residual is not None:
        z += residual
    bits = pack_bits(activation.is_on(z)) if keep_bits else no_bits(input)
    output = _activate_in_place(z, None, activation)
    values = input.numel() // input.shape[1]
    return output, eager.count_values(input, None), mean, unbiased * ((values - 1) / values), bits


train = training_by(forward)


def _train(input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """``x̂·weight + bias``, and the batch's mean and unbiased variance."""
    x = _as_rows(input)
    dtype = eager.statistics_dtype(x.dtype)
    # Buffers that are overwritten (momentum 1) hand out the moments themselves: the variance recovered from the
    # saved 1/√(var + eps) would be lost where it is below eps.
    mean = torch.zeros(x.shape[1], dtype=dtype, device=x.device)
    unbiased = torch.zeros_like(mean)
    scale, shift = (None if vector is None else eager.as_statistics(vector, dtype) for vector in (weight, bias))
    z, _, _ = torch.native_batch_norm(x, scale, shift, mean, unbiased, True, 1.0, eps)
    return _like_input(z, input), mean, unbiased


def backward(
    grad_output: Tensor,
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    bits: Tensor | None,
    count: Tensor | None,
    eps: float,
    activation: Activation,
    wanted: Sequence[bool] = (True, True, True, True),
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """As :func:`eager.backward`; ``serves(input, mask)`` must hold."""
    x = _as_rows(input)
    dtype = eager.statistics_dtype(x.dtype)
    mean, var = eager.as_statistics(mean, dtype), eager.as_statistics(var, dtype)
    training = count is not None
    dz = grad_output
    if bits is not None:
        dz = activation.backward(grad_output, unpack_bits(bits, input))
    elif activation.name != "identity":
        # z by the kernel of the forward pass: another's rounding would contradict the output where a channel is nearly
        # constant (seen: the sign in 25 of 64 dead channels).
        if training:
            z = _train(input, weight, bias, eps)[0]
        else:
            z = _like_input(_evaluate(input, mean, var, weight, bias, eps), input)
        if residual is not None:
            z += residual
        dz = _ACTIVATION_BACKWARD[activation.name](grad_output, z, *activation.parameters)
    dy = dz if x.dim() == dz.dim() else dz.transpose(1, 2).reshape(x.shape)
    x, dy = _unambiguous(x), _unambiguous(dy)
    if x.dtype != dtype and x.stride() != dy.stride():
        # In layouts that differ, torch sums half-precision gradients in half precision (seen: off by 1.5e-2).
        x, dy = x.contiguous(), dy.contiguous()
    scale = None if weight is None else eager.as_statistics(weight, dtype)
    invstd = torch.rsqrt(var + eps)
    dx, dweight, dbias = torch.ops.aten.native_batch_norm_backward(
        dy, x, scale, mean, var, mean, invstd, training, eps, list(wanted[:3])
    )
    return None if dx is None else _like_input(dx, input), dweight, dbias, dz if wanted[3] else None
