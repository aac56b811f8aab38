"""Calls that are recorded: in a graph, under a transform, in forward mode, or with buffers that torch has to watch.

- Forward mode, and traced by the old ``torch.jit.trace``: plain torch operations. (An operator with
  ``register_autograd`` returns zeros under ``torch.func.jvp`` without a word, and the ``jvp`` of an
  ``autograd.Function`` is wrong once nested, as in ``jacfwd(jacfwd(f))``: torch runs it with the outer level off.)
- Traced by ``torch.compile`` or ``torch.export``: the operator ``torch.ops.batchnorm.forward``, which carries the
  same rules by ``torch.library``; inside a ``torch.func`` transform, which no operator survives, plain operations.
- Under ``torch.func``: an ``autograd.Function`` with ``vmap``.

Evaluation is torch's own operators here, in ``native.normalize_in_graph``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..activation import Activation
from ..errors import ArgumentError
from . import eager, running
from .dispatch import kernels, running_mover
from .gradients import Backward, differentiable, gradients, keep
from .observers import observers, tell
from .schema import LIBRARY

__all__ = ["batch_norm_in_two_calls", "update_running"]


def batch_norm_in_two_calls(
    layer: tuple[Any, ...],
    running_mean: Tensor | None,
    running_var: Tensor | None,
    num_batches_tracked: Tensor | None,
    momentum: float | Tensor | None,
    skip_nonfinite: bool,
) -> Tensor:
    """Training: the functional forward pass, and then the running buffers, where there are any.

    ``layer`` is input, weight, bias, residual, mask, eps and activation.
    """
    output, count, mean, var = _forward(*layer)
    if running_mean is not None and running_var is not None:
        input, mask = layer[0], layer[4]
        buffers = (running_mean, running_var, num_batches_tracked)
        running.track(update_running, *buffers, input, mask, count, mean, var, momentum, skip_nonfinite)
    return output


def _forward(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    eps: float,
    activation: Activation,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``output``, ``count``, ``mean`` and biased ``var``, through which no gradient flows; whoever is watching."""
    arguments = (input, weight, bias, residual, mask, eps)
    transformed = torch._C._are_functorch_transforms_active()
    traced = torch.compiler.is_compiling()
    if _has_tangents() or (traced and transformed) or torch.jit.is_tracing():  # type: ignore[attr-defined]
        output, count, mean, var, _ = eager.forward(*arguments, activation, False)
        return output, count, mean.detach(), var.detach()
    recorded = differentiable(input, weight, bias, residual)
    # Under vmap the bits of several models would share bytes: the residual is kept there instead.
    keep_bits = residual is not None and activation.needs_bit and recorded and not transformed
    if traced:
        described = (activation.name, list(activation.parameters))
        return torch.ops.batchnorm.forward(*arguments, *described, keep_bits)[:4]
    if transformed:
        return _FunctionalBatchNorm.apply(*arguments, activation, keep_bits)[:4]
    kernel = kernels(input, mask)
    forward = _FunctionalBatchNorm.apply if recorded else kernel.forward
    output, count, mean, var, _ = forward(*arguments, activation, keep_bits)
    if observers:
        tell(output, recorded, kernel, input, mean, var, weight, bias, residual, mask, eps, activation)
    return output, count, mean, var


def _has_tangents() -> bool:
    return forward_ad._current_level >= 0


def _backward_operator(grad_output: Tensor, input: Tensor, *arguments: Any) -> tuple[Tensor | None, ...]:
    """``backward`` as a kernel has it, which stays one operator in a graph."""
    *layer, activation, wanted = arguments
    described = (activation.name, list(activation.parameters))
    found = torch.ops.batchnorm.backward(grad_output, input, *layer, *described, list(wanted))
    return tuple(gradient if want else None for gradient, want in zip(found, wanted, strict=True))


def _setup_forward(ctx: Any, backward: Backward, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    input, weight, bias, residual, mask, eps, activation, keep_bits = inputs
    _, count, mean, var, bits = output
    layer = (mean, var, weight, bias, residual, mask)
    keep(ctx, backward, input, layer, bits if keep_bits else None, count, eps, activation)
    ctx.mark_non_differentiable(count, mean, var, bits)


class _FunctionalBatchNorm(torch.autograd.Function):
    """Training mode without the buffers, and all that ``forward`` gives as outputs; under ``torch.func`` too.

    Inputs: input, weight, bias, residual, mask, eps, activation, keep_bits.
    """

    @staticmethod
    def forward(input: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        output: tuple[Tensor, ...] = kernels(input, arguments[3]).forward(input, *arguments)
        return output

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _setup_forward(ctx, kernels(inputs[0], inputs[4]).backward, inputs, output)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        return *gradients(ctx, grad_output, ctx.needs_input_grad[:4]), None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, Any]:
        """Several models at once are one model with more channels."""
        input, weight, bias, residual, mask, eps, activation, keep_bits = arguments
        if in_dims[4] is not None:  # a mask each: channels of one layer would differ in their count
            plain = torch.vmap(eager.forward, in_dims=in_dims)
            return plain(*arguments), (0, 0, 0, 0, 0)
        models = info.batch_size

        def images(x: Tensor | None, dim: int | None) -> Tensor | None:
            if x is None:
                return None
            x = x.unsqueeze(1).expand(-1, models, *x.shape[1:]) if dim is None else x.movedim(dim, 1)
            return x.flatten(1, 2)  # (N, models·C, *spatial)

        def vectors(x: Tensor | None, dim: int | None) -> Tensor | None:
            if x is None:
                return None
            return (x.expand(models, -1) if dim is None else x.movedim(dim, 0)).flatten()  # (models·C,)

        output, count, mean, var, bits = _FunctionalBatchNorm.apply(
            images(input, in_dims[0]),
            vectors(weight, in_dims[1]),
            vectors(bias, in_dims[2]),
            images(residual, in_dims[3]),
            mask,
            eps,
            activation,
            keep_bits,
        )
        split = (output.unflatten(1, (models, -1)), count, mean.view(models, -1), var.view(models, -1), bits)
        return split, (1, None, 0, 0, None)


# The same rules for the operator that graphs record, whose backward stays an operator there. The activation comes by
# name.


def _setup_forward_operator(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, eps, name, parameters, keep_bits = inputs
    _setup_forward(ctx, _backward_operator, (*tensors, eps, Activation.of(name, parameters), keep_bits), output)


def _backward_forward_operator(ctx: Any, grad_output: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    return *gradients(ctx, grad_output, ctx.needs_input_grad[:4]), None, None, None, None, None


torch.library.register_autograd(
    "batchnorm::forward", _backward_forward_operator, setup_context=_setup_forward_operator, lib=LIBRARY
)


def update_running(
    running_mean: Tensor,
    running_var: Tensor,
    num_batches_tracked: Tensor | None,
    count: Tensor | int,
    mean: Tensor,
    var: Tensor,
    momentum: float | Tensor,
    skip_nonfinite: bool,
) -> None:
    """Move the running buffers, in place; see :func:`running.update_running`."""
    buffers = (running_mean, running_var, num_batches_tracked)
    transformed = torch._C._are_functorch_transforms_active()
    if torch.compiler.is_compiling() and not transformed:
        if not isinstance(count, Tensor):
            count = torch.full((), count, dtype=torch.int64, device=mean.device)
        overload = "tensor" if isinstance(momentum, Tensor) else "default"
        operator = getattr(torch.ops.batchnorm.update_running, overload)
        operator(*buffers, count, mean, var, momentum, skip_nonfinite)
    else:
        _check_models(running_mean, mean)
        update = running.update_running if transformed else running_mover(mean, direct=True)
        update(*buffers, count, mean, var, momentum, skip_nonfinite)


def _check_models(running_mean: Tensor, mean: Tensor) -> None:
    is_batched = torch._C._functorch.is_batchedtensor
    if is_batched(mean) and not is_batched(running_mean):
        raise ArgumentError(
            "under vmap each model has statistics of its own, and the running buffers are those of one model.",
            "stack the buffers too (torch.func.stack_module_state), call eval(), or set track_running_stats=False.",
        )
