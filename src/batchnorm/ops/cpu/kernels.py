"""The compiled kernels under the names and signatures of :mod:`batchnorm.ops.eager`: one call each.

The operators are torch's to dispatch, so whatever watches them (fake tensors, profilers, dispatch modes) sees them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...activation import Activation
from .. import schema as _schema  # noqa: F401  (defines the operators)

__all__ = ["CHECKS_TENSORS", "backward", "forward", "normalize", "serves", "train"]

CHECKS_TENSORS = True  # each refuses what does not fit, before it writes anything

# Bound once: looking an overload up takes 0.2 µs.
_increment_version = torch._C._increment_version
_forward = torch.ops.batchnorm.forward.default
_train = torch.ops.batchnorm.train.default
_normalize = torch.ops.batchnorm.normalize.default
_backward = torch.ops.batchnorm.backward.default


def serves(input: Tensor, mask: Tensor | None) -> bool:
    """Whether these kernels can take this: whatever is on the CPU, of any strides, under a mask or not."""
    return input.is_cpu


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
    """As :func:`eager.forward`."""
    found: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] = _forward(
        input, weight, bias, residual, mask, eps, activation.name, activation.parameters, keep_bits
    )
    return found


def train(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    num_batches_tracked: Tensor | None,
    momentum: float | None,
    skip_nonfinite: bool,
    eps: float,
    activation: Activation,
    keep_bits: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As :func:`eager.train`, the buffers moved inside."""
    if running_mean is not None and running_var is not None:
        # Before anything moves: torch refuses here what must not be written to.
        buffers = (running_mean, running_var)
        _increment_version(buffers if num_batches_tracked is None else (*buffers, num_batches_tracked))
    found: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] = _train(
        input,
        weight,
        bias,
        residual,
        mask,
        running_mean,
        running_var,
        num_batches_tracked,
        momentum,
        skip_nonfinite,
        eps,
        activation.name,
        activation.parameters,
        keep_bits,
    )
    return found


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
    """As :func:`eager.normalize`."""
    output: Tensor = _normalize(
        input, mean, var, weight, bias, residual, mask, eps, activation.name, activation.parameters
    )
    return output


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
    """As :func:`eager.backward`."""
    layer = (mean, var, weight, bias, residual, mask, bits, count)
    dx, dweight, dbias, dresidual = _backward(
        grad_output, input, *layer, eps, activation.name, activation.parameters, wanted
    )
    return (
        dx if wanted[0] else None,
        dweight if wanted[1] else None,
        dbias if wanted[2] else None,
        dresidual if wanted[3] else None,
    )
