"""How autograd meets the operators: the two ways in, and the direct road.

There is one way in for each of the two modes. A caller first asks :func:`direct_kernels`. Where it names some, nothing
watches but plain autograd:

- Nothing to differentiate: one call of the kernel.
- Else an ``autograd.Function`` around that call.

Where it names none, the call is recorded (:mod:`batchnorm.ops.recorded`). What is kept for the backward pass is the
same on all roads (:mod:`batchnorm.ops.gradients`).
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..activation import Activation
from . import native
from .dispatch import kernels
from .gradients import differentiable, gradients, keep, normalize_with_bits
from .observers import observers, tell
from .recorded import batch_norm_in_two_calls

__all__ = ["batch_norm", "direct_kernels", "normalize"]


def direct_kernels(input: Tensor, mask: Tensor | None, training: bool) -> ModuleType | None:
    """The kernels that serve this call; None where it is recorded: in a graph, a transform or forward mode."""
    if (
        torch.compiler.is_compiling()  # first: a compiler knows the answer, and traces no further
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or torch._C._is_tracing()  # torch.jit.trace
    ):
        return None
    return kernels(input, mask, not training)


def batch_norm(
    kernel: ModuleType | None,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    num_batches_tracked: Tensor | None,
    momentum: float | Tensor | None,
    skip_nonfinite: bool,
    eps: float,
    activation: Activation,
) -> Tensor:
    """Training: ``output`` by the batch's moments, which then move the running buffers, where there are any.

    ``kernel`` is what :func:`direct_kernels` named.
    """
    if (
        kernel is None
        or isinstance(momentum, Tensor)
        # As averaging state_dicts leaves it; torch counts on in any dtype.
        or (num_batches_tracked is not None and num_batches_tracked.dtype is not torch.int64)
        # Torch has to see that such a buffer is written to, and refuse.
        or (running_mean is not None and running_mean.requires_grad)
        or (running_var is not None and running_var.requires_grad)
    ):
        layer = (input, weight, bias, residual, mask, eps, activation)
        return batch_norm_in_two_calls(layer, running_mean, running_var, num_batches_tracked, momentum, skip_nonfinite)
    if running_mean is not None and torch._C._current_graph_task_id() != -1:
        # As running.is_recomputation() finds it: kernels that move the buffers themselves do not ask.
        running_mean = running_var = num_batches_tracked = None
    buffers = (running_mean, running_var, num_batches_tracked, momentum, skip_nonfinite)
    if differentiable(input, weight, bias, residual):
        return _apply_batch_norm(input, weight, bias, residual, (kernel, mask, *buffers, eps, activation))
    output: Tensor
    output, _, mean, var, _ = kernel.train(input, weight, bias, residual, mask, *buffers, eps, activation, False)
    if observers:
        tell(output, False, kernel, input, mean, var, weight, bias, residual, mask, eps, activation)
    return output


def normalize(
    kernel: ModuleType | None,
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
    """Evaluation: ``output`` by the statistics given, through which no gradient flows.

    Where the call is recorded (``kernel`` is None) these are torch's own operators: a compiler fuses them with their
    neighbours, and ONNX gets its standard nodes. Elsewhere less is kept for the backward pass than they would.
    """
    if kernel is None:
        return native.normalize_in_graph(input, mean, var, weight, bias, residual, mask, eps, activation)
    if differentiable(input, weight, bias, residual):
        return _apply_normalize(input, weight, bias, residual, (kernel, mean, var, mask, eps, activation))
    output: Tensor = kernel.normalize(input, mean, var, weight, bias, residual, mask, eps, activation)
    if observers:
        tell(output, False, kernel, input, mean, var, weight, bias, residual, mask, eps, activation)
    return output


class _BatchNorm(torch.autograd.Function):
    """Training mode in one call, which moves the buffers too.

    Inputs: input, weight, bias, residual, and what takes no part in differentiation as one tuple: torch looks at each
    argument, and takes 0.1 µs for it.
    """

    # With a `setup_context` of its own, torch looks up the signature at every call, which then takes 1.6 times as long
    # (a 64×16 input, medians of 25 interleaved rounds). Each output more would cost 0.5 µs.
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        others: tuple[Any, ...],
    ) -> Tensor:
        kernel, mask, running_mean, running_var, num_batches_tracked, momentum, skip_nonfinite, eps, activation = others
        keep_bits = residual is not None and activation.needs_bit
        output: Tensor
        output, count, mean, var, bits = kernel.train(
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
            activation,
            keep_bits,
        )
        layer = (mean, var, weight, bias, residual, mask)
        keep(ctx, kernel.backward, input, layer, bits if keep_bits else None, count, eps, activation, direct=True)
        if observers:
            tell(output, True, kernel, input, *layer, eps, activation)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None) -> tuple[Tensor | None, ...]:
        return *gradients(ctx, grad_output, ctx.needs_input_grad[:4]), None


class _Normalize(torch.autograd.Function):
    """Evaluation mode. Inputs as those of :class:`_BatchNorm`, the statistics among what is not differentiated."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        others: tuple[Any, ...],
    ) -> Tensor:
        kernel, mean, var, mask, eps, activation = others
        layer = (mean, var, weight, bias, residual, mask)
        output: Tensor
        bits, plain_bits = None, False
        if residual is None:
            output = kernel.normalize(input, *layer, eps, activation)
        else:
            output, bits, plain_bits = normalize_with_bits(kernel, input, layer, eps, activation)
        # Copies: a training step in between moves the running buffers, and the gradient is that of what was computed.
        layer = (mean.clone(), var.clone(), weight, bias, residual, mask)
        backward = kernels(input, mask).backward
        keep(ctx, backward, input, layer, bits, None, eps, activation, plain_bits=plain_bits)
        if observers:
            tell(output, True, kernel, input, *layer, eps, activation)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None) -> tuple[Tensor | None, ...]:
        return *gradients(ctx, grad_output, ctx.needs_input_grad[:4]), None


# `Function.apply` looks for torch.func's transforms and for what they left behind in every argument (1.6 µs). Under a
# transform nothing comes here, so this is the `apply` of the class above it, which does the work.
_apply_batch_norm = super(torch.autograd.Function, _BatchNorm).apply
_apply_normalize = super(torch.autograd.Function, _Normalize).apply
