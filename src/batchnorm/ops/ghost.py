"""Training on a batch in parts, each with statistics of its own (ghost batch normalization).

Two roads, as for a whole batch. Where nothing watches but plain autograd, one node of the graph: output and gradients
are allocated once, and compiled kernels write each part into its slice. ``torch.cat`` of the parts' own outputs would
copy them, and in the backward pass their gradients, and cost a node a part. Everything else is that ``torch.cat``.

An observer is not told of the output: no recipe of one mean and variance a channel computes it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ..activation import Activation
from . import autograd, eager
from .bits import bits_size
from .gradients import as_kept, differentiable, gradients, strides_of

__all__ = ["batch_norm_in_parts", "part_sizes"]


def part_sizes(input: Tensor, ghost_size: int) -> list[int]:
    """How many samples each part has: at most ``ghost_size``, cut as ``torch.tensor_split`` cuts.

    Sizes are equal but for one, so that no remainder has statistics of next to nothing. Where a sample is one value a
    channel, as in (N, C), a part has two at least: one has no variance. What holds no values is not cut.

    Example:
        >>> part_sizes(torch.zeros(9, 3, 2), 4), part_sizes(torch.zeros(5, 3), 1)
        ([3, 3, 3], [3, 2])
    """
    samples = input.shape[0]
    if samples <= ghost_size or input.numel() == 0:
        return [samples]
    parts = -(-samples // ghost_size)
    if input.numel() == samples * input.shape[1]:
        parts = max(1, min(parts, samples // 2))
    short, longer = samples // parts, samples % parts  # a compiler has no divmod of a size that varies
    return [short + 1] * longer + [short] * (parts - longer)


def batch_norm_in_parts(
    kernel: ModuleType | None,
    sizes: Sequence[int],
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
    """Training: each part's ``output`` by its own moments, which then move the running buffers, part after part.

    ``kernel`` is what :func:`autograd.direct_kernels` named, ``sizes`` the parts' numbers of samples.
    """
    buffers = (running_mean, running_var, num_batches_tracked, momentum, skip_nonfinite)
    if (
        kernel is None  # and the rest as in autograd.batch_norm: what must be recorded
        or isinstance(momentum, Tensor)
        or (num_batches_tracked is not None and num_batches_tracked.dtype is not torch.int64)
        or (running_mean is not None and running_mean.requires_grad)
        or (running_var is not None and running_var.requires_grad)
    ):
        parts = _cut(sizes, input, residual, mask)
        outputs = [
            autograd.batch_norm(kernel, x, weight, bias, added, valid, *buffers, eps, activation)
            for x, added, valid in parts
        ]
        return _joined(outputs, input)
    if running_mean is not None and torch._C._current_graph_task_id() != -1:
        buffers = (None, None, None, momentum, skip_nonfinite)  # a recomputation: they have seen this batch
    if differentiable(input, weight, bias, residual):
        return _apply(input, weight, bias, residual, (kernel, sizes, mask, buffers, eps, activation))
    return _train(kernel, sizes, input, weight, bias, residual, mask, buffers, eps, activation, False)[0]


def _train(
    kernel: ModuleType,
    sizes: Sequence[int],
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    buffers: tuple[Any, ...],
    eps: float,
    activation: Activation,
    keep_bits: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """``output``; ``mean`` and ``var``, (parts · C,); and the parts' bits, one after the other."""
    if mask is None and hasattr(kernel, "train_parts"):
        layer = (input, weight, bias, residual)
        at_once: tuple[Tensor, Tensor, Tensor, Tensor | None] | None
        at_once = kernel.train_parts(sizes, *layer, *buffers, eps, activation, keep_bits)
        if at_once is not None:
            return at_once
    found = [
        kernel.train(x, weight, bias, added, valid, *buffers, eps, activation, keep_bits)
        for x, added, valid in _cut(sizes, input, residual, mask)
    ]
    outputs, _, means, variances, bits = zip(*found, strict=True)
    return _joined(outputs, input), torch.cat(means), torch.cat(variances), torch.cat(bits) if keep_bits else None


class _GhostBatchNorm(torch.autograd.Function):
    """Inputs: input, weight, bias, residual, and what takes no part in differentiation as one tuple."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        others: tuple[Any, ...],
    ) -> Tensor:
        kernel, sizes, mask, buffers, eps, activation = others
        keep_bits = residual is not None and activation.needs_bit
        layer = (input, weight, bias, residual)
        output, mean, var, bits = _train(kernel, sizes, *layer, mask, buffers, eps, activation, keep_bits)
        # As gradients.keep(): z is computed again from these where the derivative asks for it.
        needs_z = bits is None and activation.name != "identity"
        ctx.save_for_backward(input, weight, bias if needs_z else None, residual if needs_z else None, mask, bits)
        ctx.statistics = (mean, var)  # neither inputs nor outputs
        ctx.call = (kernel, sizes, eps, activation)
        ctx.strides = None if bits is None else strides_of(input)
        ctx.set_materialize_grads(False)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad_output is None:
            return None, None, None, None, None
        input, weight, bias, residual, mask, bits = ctx.saved_tensors  # once: a checkpoint has them no second time
        input = as_kept(input, ctx.strides)
        saved = (input, weight, bias, residual, mask, bits)
        kernel, _, eps, activation = ctx.call
        wanted = ctx.needs_input_grad[:4]
        plain = not torch.is_grad_enabled() and not torch._C._functorch.is_legacy_batchedtensor(grad_output)
        if plain and mask is None and hasattr(kernel, "backward_parts"):
            layer = (grad_output, input, *ctx.statistics, weight, bias, residual, bits)
            found = kernel.backward_parts(*layer, eps, activation, wanted)
            if found is not None:
                return *found, None
        return *_gradients_by_part(saved, ctx.statistics, grad_output, ctx.call, wanted), None


# As in autograd.py: under a transform nothing comes here.
_apply = super(torch.autograd.Function, _GhostBatchNorm).apply


def _gradients_by_part(
    saved: Sequence[Tensor | None],
    statistics: Sequence[Tensor],
    grad_output: Tensor,
    call: tuple[Any, ...],
    wanted: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    input, weight, bias, residual, mask, all_bits = saved
    kernel, sizes, eps, activation = call
    mean, var = (statistic.view(len(sizes), -1).unbind() for statistic in statistics)
    assert input is not None
    cut = _cut(sizes, input, residual, mask)
    bits = [None] * len(sizes) if all_bits is None else all_bits.split([bits_size(x) for x, _, _ in cut])
    found = []
    for place, ((x, added, valid), gradient) in enumerate(zip(cut, grad_output.split(sizes), strict=True)):
        part = SimpleNamespace(
            saved_tensors=(x, None, None, None, weight, bias, added, valid, bits[place]),
            statistics=(mean[place], var[place], eager.count_values(x, valid)),
            call=(kernel.backward, eps, activation, True, False, None),
        )
        found.append(gradients(part, gradient, wanted))
    of_input, of_weight, of_bias, of_residual = zip(*found, strict=True)
    return (
        _joined(of_input, input) if wanted[0] else None,
        sum(of_weight) if wanted[1] else None,
        sum(of_bias) if wanted[2] else None,
        _joined(of_residual, input) if wanted[3] else None,
    )


def _cut(
    sizes: Sequence[int], input: Tensor, residual: Tensor | None, mask: Tensor | None
) -> list[tuple[Tensor, Tensor | None, Tensor | None]]:
    nothing = [None] * len(sizes)
    return list(
        zip(
            input.split(sizes),
            nothing if residual is None else residual.split(sizes),
            nothing if mask is None else mask.split(sizes),
            strict=True,
        )
    )


def _joined(parts: Sequence[Tensor], like: Tensor) -> Tensor:
    """The parts as one tensor with the strides of ``torch.empty_like(like)``, by operations that any road supports."""
    joined = torch.cat(tuple(parts))
    strides = torch.empty_like(like, device="meta").stride()
    if joined.stride() == strides:
        return joined
    order = sorted(range(like.dim()), key=lambda dim: (strides[dim], like.shape[dim]), reverse=True)
    inverse = sorted(range(like.dim()), key=order.__getitem__)
    return joined.permute(order).contiguous().permute(inverse)
