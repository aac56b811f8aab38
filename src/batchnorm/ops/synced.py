"""Training mode by the moments of all ranks: one collective in the forward pass, one in the backward pass.

    forward     moments of the rank's own input → all-gather (count, mean, M2) → Chan's formula → normalize
    backward    Σdz and Σdz·x̂ of the rank's own input → all-reduce → gradient of the input

Nothing else crosses processes. The gathered parts are the same bits on all ranks and are merged in one order, so that
statistics and running buffers are the same bits too. Gradients of the parameters are those of the rank's own samples:
who averages gradients (DDP, FSDP) adds them up.

The collectives are the operators behind ``torch.distributed._functional_collectives``, called by name: a compiler sees
them as they are, and what waits for them is a stream, never the host (gloo, whose tensors are the host's, waits in the
collective itself). Without their wrapper, a tensor subclass that waits when it is first used, for they are used at
once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..activation import Activation
from ..errors import ArgumentError
from . import native
from .bits import pack_bits, unpack_bits
from .dispatch import kernels, rank_kernels
from .eager import statistics_dtype
from .gradients import as_kept, differentiable, normalize_with_bits, strides_of
from .observers import observers, tell
from .recorded import update_running
from .running import is_recomputation

__all__ = ["batch_norm_synced"]


def batch_norm_synced(
    group: str,
    ranks: int,
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
) -> tuple[Tensor, Tensor]:
    """Training over the ``ranks`` processes of the group of that name, each of which calls this.

    Returns:
        ``output`` (N, C, *spatial), of this rank's input, and ``count`` () int64, how many values a channel has on all
        ranks together.
    """
    _refuse_transforms(input, weight, bias, residual)
    with torch.no_grad():
        empty, count, mean, var = _moments(input, mask, group, ranks)
    arguments = (input, weight, bias, residual, (mask, mean, var, count, eps, activation, group))
    if differentiable(input, weight, bias, residual):
        output: Tensor = _SyncedBatchNorm.apply(*arguments)
    else:
        output = _normalize(False, *arguments)[0]
    if running_mean is not None and running_var is not None:
        buffers = (running_mean, running_var, num_batches_tracked)
        _track(*buffers, empty, count, mean, var, momentum, skip_nonfinite)
    return output, count


def _moments(input: Tensor, mask: Tensor | None, group: str, ranks: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of all ranks together: whether none has any position, count () int64, mean and biased var, (C,)."""
    kernel = rank_kernels(input)
    part = kernel.pack_moments(input, mask)
    parts = _all_gather(part, ranks, group).view(ranks, -1)
    merged: tuple[Tensor, Tensor, Tensor, Tensor] = kernel.merge_parts(parts, statistics_dtype(input.dtype))
    return merged


def _track(
    running_mean: Tensor,
    running_var: Tensor,
    num_batches_tracked: Tensor | None,
    empty: Tensor,
    count: Tensor,
    mean: Tensor,
    var: Tensor,
    momentum: float | Tensor | None,
    skip_nonfinite: bool,
) -> None:
    if isinstance(momentum, Tensor):
        momentum = momentum.detach()  # or the buffers would join the graph
    elif momentum is None:
        assert num_batches_tracked is not None
        momentum = 1.0 / (num_batches_tracked + 1)
    buffers = (running_mean, running_var, num_batches_tracked)
    update_running(*buffers, count, mean, var, momentum, skip_nonfinite)
    if num_batches_tracked is not None and not is_recomputation():
        # A batch that is empty on all ranks counts, as an empty one does on a single rank; one that is all padding
        # does not.
        num_batches_tracked.add_(empty)


def _all_gather(part: Tensor, ranks: int, group: str) -> Tensor:
    operators = torch.ops._c10d_functional
    gathered: Tensor = operators.wait_tensor(operators.all_gather_into_tensor(part, ranks, group))
    return gathered


def _all_reduce(sums: Tensor, group: str) -> Tensor:
    operators = torch.ops._c10d_functional
    total: Tensor = operators.wait_tensor(operators.all_reduce(sums, "sum", group))
    return total


def _normalize(
    recorded: bool,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    others: tuple[Any, ...],
) -> tuple[Tensor, Tensor | None, bool]:
    """``output``; if it is ``recorded``, the bits for the backward pass; and whether plain operations wrote them."""
    mask, mean, var, _, eps, activation, _ = others
    layer = (mean, var, weight, bias, residual, mask)
    traced = torch.compiler.is_compiling()
    # Of a GPU's kernels a compiler cannot follow the search.
    kernel = native if traced and not input.is_cpu else kernels(input, mask, evaluation=True)
    # Kernels of ours compute z again to the last bit. Torch's and plain operations differ in it, and so might the side
    # of the kink.
    by_bits = recorded and activation.needs_bit and (residual is not None or kernel is native)
    output: Tensor
    bits, plain = None, True
    if traced:
        output = torch.ops.batchnorm.normalize(input, *layer, eps, activation.name, list(activation.parameters))
        bits = pack_bits(activation.is_on(output)) if by_bits and activation.output_tells_bit else None
        return output, bits, plain
    if by_bits:
        output, bits, plain = normalize_with_bits(kernel, input, layer, eps, activation)
    else:
        output = kernel.normalize(input, *layer, eps, activation)
    if observers:
        tell(output, recorded, kernel, input, *layer, eps, activation)
    return output, bits, plain


class _SyncedBatchNorm(torch.autograd.Function):
    """``normalize`` by statistics that depend on the input: the input of this rank and those of all others.

    Inputs: input, weight, bias, residual, and as one tuple mask, mean, var, count, eps, activation and group.
    """

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        others: tuple[Any, ...],
    ) -> Tensor:
        mask, mean, var, count, eps, activation, group = others
        output, bits, ctx.plain_bits = _normalize(True, input, weight, bias, residual, others)
        needs_z = bits is None and activation.name != "identity"
        ctx.save_for_backward(
            input,
            mean,
            var,
            count,
            weight,
            bias if needs_z else None,
            residual if needs_z else None,
            mask,
            bits,
        )
        ctx.eps, ctx.activation, ctx.group = eps, activation, group
        ctx.strides = None if bits is None else strides_of(input)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_higher_derivatives(grad_output)
        input, mean, var, count, weight, bias, residual, mask, bits = ctx.saved_tensors
        input = as_kept(input, ctx.strides)
        activation: Activation = ctx.activation
        name, parameters = activation.name, list(activation.parameters)
        if bits is not None and ctx.plain_bits:
            grad_output = activation.backward(grad_output, unpack_bits(bits, input))
            bits, name, parameters = None, "identity", []
        layer = (grad_output, input, mean, var, weight, bias, residual, mask, bits)
        for_input, for_weight, for_bias, for_residual = ctx.needs_input_grad[:4]
        sum_dz, sum_dz_standardized = torch.ops.batchnorm.grad_sums(*layer, ctx.eps, name, parameters)
        dx = dresidual = total_dz = total_dz_standardized = None
        if for_input:
            sums = _all_reduce(torch.cat((sum_dz, sum_dz_standardized)).to(torch.float64), ctx.group).to(sum_dz.dtype)
            total_dz, total_dz_standardized = sums[: input.shape[1]], sums[input.shape[1] :]
        if for_input or for_residual:
            totals = (count, total_dz, total_dz_standardized)
            dx, dresidual = torch.ops.batchnorm.grad_input(*layer, *totals, ctx.eps, name, parameters, for_residual)
        return (
            dx if for_input else None,
            sum_dz_standardized if for_weight else None,
            sum_dz if for_bias else None,
            dresidual if for_residual else None,
            None,
        )


_MEND = "convert the model to plain norms for this, or run it in one process."


def _refuse_transforms(*tensors: Tensor | None) -> None:
    if torch._C._are_functorch_transforms_active():
        raise ArgumentError("torch.func's transforms do not reach the samples of other ranks.", _MEND)
    if forward_ad._current_level >= 0 and any(
        tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors
    ):
        raise ArgumentError("forward mode does not reach the samples of other ranks.", _MEND)
    if not torch.compiler.is_compiling() and torch._C._is_tracing():
        raise ArgumentError(
            "torch.jit.trace records no collectives.", "trace in evaluation mode, or use torch.compile."
        )


def _refuse_higher_derivatives(grad_output: Tensor) -> None:
    if torch.compiler.is_compiling():
        return  # torch itself refuses to differentiate a compiled backward pass
    if torch.is_grad_enabled():
        raise ArgumentError(
            "with create_graph=True the gradient would be differentiated again, and second derivatives across ranks"
            " are not there.",
            _MEND,
        )
    if torch._C._functorch.is_legacy_batchedtensor(grad_output):
        raise ArgumentError("gradients in batches (is_grads_batched) do not cross ranks.", _MEND)
