"""The compiled kernels under the names and signatures of :mod:`batchnorm.ops.eager`.

Each has two ways in. The operators are torch's to dispatch: whatever watches them (fake tensors, profilers, dispatch
modes) sees them. Where nothing watches, a function of the extension is called past the dispatcher, which on a small
input is half the time (``direct.cpp`` says why, and why it may say no).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...activation import Activation
from .. import schema as _schema  # noqa: F401  (defines the operators)
from ..bits import bits_size
from ..eager import statistics_dtype
from . import _kernels

__all__ = ["CHECKS_TENSORS", "backward", "backward_parts", "forward", "normalize", "train", "train_parts"]

CHECKS_TENSORS = True  # each refuses what does not fit, before it writes anything

# Bound once: looking an overload up takes 0.2 µs.
_forward = torch.ops.batchnorm.forward.default
_train = torch.ops.batchnorm.train.default
_normalize = torch.ops.batchnorm.normalize.default
_backward = torch.ops.batchnorm.backward.default
_increment_version = torch.autograd.graph.increment_version
_empty, _empty_like = torch.empty, torch.empty_like
_CPU = torch.device("cpu")

# The versions of torch that the direct functions have been tested with.
_TESTED = ((2, 10), (2, 13))
_version = tuple(int(part) for part in torch.__version__.split(".")[:2])
_is_direct = _TESTED[0] <= _version <= _TESTED[1]
_kernels.prepare(Tensor, torch.nn.Parameter)
if _is_direct:  # these names are promised to nobody
    _modes = torch._C._len_torch_dispatch_stack
    _is_profiled = torch._C._autograd._profiler_enabled

_counts: dict[int, Tensor] = {}


def _count(input: Tensor) -> Tensor:
    """How many values a channel has, as one tensor a number: nobody writes to it."""
    values = input.numel() // (input.shape[1] or 1)
    count = _counts.get(values)
    if count is None:
        if len(_counts) == 1024:  # lengths that vary without end
            _counts.clear()
        with torch.inference_mode(False):  # or it could not be kept for a backward pass
            count = _counts[values] = torch.full((), values, dtype=torch.int64, device=_CPU)
    return count


def _vector(input: Tensor, weight: Tensor | None) -> Tensor:
    """Memory for a vector of statistics."""
    if weight is not None and weight.dtype is torch.float32 and input.dtype is not torch.float64:
        return _empty_like(weight)  # 0.3 µs less than by size and dtype
    return _empty(input.shape[1], dtype=statistics_dtype(input.dtype), device=_CPU)


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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """As :func:`eager.train`, the buffers moved inside."""
    if running_mean is not None and running_var is not None:
        # Before anything moves: torch refuses here what must not be written to.
        buffers = (running_mean, running_var)
        _increment_version(buffers if num_batches_tracked is None else (*buffers, num_batches_tracked))
    if mask is None and _is_direct and not _modes() and not _is_profiled() and input.dim() > 1:
        output = _empty_like(input)
        mean, var = _vector(input, weight), _vector(input, weight)
        bits = _empty(bits_size(input), dtype=torch.uint8, device=_CPU) if keep_bits else None
        # Argument by argument, as to the operator below: tuples unpacked into both calls cost 0.27 µs, of 8.
        if _kernels.train(
            input,
            output,
            mean,
            var,
            bits,
            weight,
            bias,
            residual,
            running_mean,
            running_var,
            num_batches_tracked,
            momentum,
            skip_nonfinite,
            eps,
            activation.name,
            activation.parameters,
        ):
            return output, _count(input), mean, var, bits
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
    name, parameters = activation.name, activation.parameters
    if mask is None and _is_direct and not _modes() and not _is_profiled():
        output = _empty_like(input)
        if _kernels.normalize(input, output, mean, var, weight, bias, residual, eps, name, parameters):
            return output
    found: Tensor = _normalize(input, mean, var, weight, bias, residual, mask, eps, name, parameters)
    return found


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
    name, parameters = activation.name, activation.parameters
    if mask is None and _is_direct and not _modes() and not _is_profiled():
        dx = _empty_like(input) if wanted[0] else None
        dweight = _vector(input, weight) if wanted[1] else None
        dbias = _vector(input, weight) if wanted[2] else None
        dresidual = _empty_like(input) if wanted[3] else None
        layer = (mean, var, weight, bias, residual, bits, count is not None)
        gradients = (dx, dweight, dbias, dresidual)
        if _kernels.backward(grad_output, input, *layer, *gradients, eps, name, parameters):
            return gradients
    found = _backward(
        grad_output, input, mean, var, weight, bias, residual, mask, bits, count, eps, name, parameters, wanted
    )
    return tuple(gradient if want else None for gradient, want in zip(found, wanted, strict=True))  # type: ignore[return-value]


def train_parts(
    sizes: Sequence[int],
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    num_batches_tracked: Tensor | None,
    momentum: float | None,
    skip_nonfinite: bool,
    eps: float,
    activation: Activation,
    keep_bits: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None] | None:
    """As :func:`train` on each part of a batch, ``sizes`` of ``torch.tensor_split``, one after the other.

    Returns:
        ``output``; ``mean`` and ``var``, (parts · C,); the parts' bits, one after the other. None where the direct
        function does not serve, and nothing was written.
    """
    if not _is_direct or _modes() or _is_profiled():
        return None
    if running_mean is not None and running_var is not None:
        buffers = (running_mean, running_var)
        _increment_version(buffers if num_batches_tracked is None else (*buffers, num_batches_tracked))
    output = _empty_like(input)
    entries, dtype = len(sizes) * input.shape[1], statistics_dtype(input.dtype)
    mean, var = _empty(entries, dtype=dtype, device=_CPU), _empty(entries, dtype=dtype, device=_CPU)
    bits = None
    if keep_bits:
        bits = _empty(sum(bits_size(part) for part in input.split(sizes)), dtype=torch.uint8, device=_CPU)
    moved = (running_mean, running_var, num_batches_tracked, momentum, skip_nonfinite)
    layer = (weight, bias, residual, *moved, eps, activation.name, activation.parameters)
    return (output, mean, var, bits) if _kernels.train_parts(input, output, mean, var, bits, *layer) else None


def backward_parts(
    grad_output: Tensor,
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    bits: Tensor | None,
    eps: float,
    activation: Activation,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None] | None:
    """As :func:`backward` on each part, with what :func:`train_parts` gave; the parameters' gradients are of all parts.

    Returns:
        None where the direct function does not serve.
    """
    if not _is_direct or _modes() or _is_profiled():
        return None
    dx = _empty_like(input) if wanted[0] else None
    dweight = _vector(input, weight) if wanted[1] else None
    dbias = _vector(input, weight) if wanted[2] else None
    dresidual = _empty_like(input) if wanted[3] else None
    gradients = (dx, dweight, dbias, dresidual)
    layer = (grad_output, input, mean, var, weight, bias, residual, bits, *gradients)
    return gradients if _kernels.backward_parts(*layer, eps, activation.name, activation.parameters) else None
