"""How autograd meets the operators: what is kept for the backward pass, and the gradients.

There is one way in for each of the two modes, and four roads behind it:

- Forward mode, and traced by the old ``torch.jit.trace``: plain torch operations. (An operator with
  ``register_autograd`` returns zeros under ``torch.func.jvp`` without a word, and the ``jvp`` of an
  ``autograd.Function`` is wrong once nested, as in ``jacfwd(jacfwd(f))``: torch runs it with the outer level off.)
- Traced by ``torch.compile`` or ``torch.export``: the operator ``torch.ops.batchnorm.forward``, which carries the
  same rules by ``torch.library``; inside a ``torch.func`` transform, which no operator survives, plain operations.
- Nothing to differentiate: the kernel itself.
- Else an ``autograd.Function``; under ``torch.func`` with ``vmap``.

Kept for the backward pass: the input, per-channel vectors, and with a residual either one bit an element
(piecewise linear activations) or the residual itself (the smooth ones). Never the output, never z.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..activation import Activation
from ..errors import ArgumentError
from . import eager, native, running
from .bits import pack_bits
from .dispatch import kernels
from .schema import LIBRARY

__all__ = ["batch_norm", "normalize", "update_running"]


def batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    eps: float,
    activation: Activation,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training: ``output``, and the batch's ``count``, ``mean`` and biased ``var``, through which no gradient flows."""
    arguments = (input, weight, bias, residual, mask, eps)
    transformed = torch._C._are_functorch_transforms_active()
    traced = torch.compiler.is_compiling()
    if _has_tangents() or (traced and transformed) or _is_jit_traced():
        output, count, mean, var, _ = eager.forward(*arguments, activation, False)
        return output, count, mean.detach(), var.detach()
    differentiable = _differentiable(input, weight, bias, residual)
    # Under vmap the bits of several models would share bytes: the residual is kept there instead.
    keep_bits = residual is not None and activation.needs_bit and differentiable and not transformed
    if traced:
        described = (activation.name, list(activation.parameters))
        return torch.ops.batchnorm.forward(*arguments, *described, keep_bits)[:4]
    if transformed:
        return _TransformedBatchNorm.apply(*arguments, activation, keep_bits)[:4]
    if differentiable:
        return _BatchNorm.apply(*arguments, activation, keep_bits)[:4]
    return kernels(input, mask).forward(*arguments, activation, keep_bits)[:4]


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
    """Evaluation: ``output`` by the statistics given, through which no gradient flows.

    In a graph (compiled, exported, transformed) these are torch's own operators: a compiler fuses them with their
    neighbours, and ONNX gets its standard nodes. Elsewhere less is kept for the backward pass than they would.
    """
    arguments = (input, mean, var, weight, bias, residual, mask, eps, activation)
    traced = torch.compiler.is_compiling() or _is_jit_traced()
    in_graph = traced or torch._C._are_functorch_transforms_active()
    if in_graph or _has_tangents():
        return native.normalize_in_graph(*arguments)
    if _differentiable(input, weight, bias, residual):
        return _Normalize.apply(*arguments)
    return native.normalize(*arguments)


def _differentiable(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _is_jit_traced() -> bool:
    return torch.jit.is_tracing()  # type: ignore[attr-defined]


def _has_tangents() -> bool:
    return forward_ad._current_level >= 0


def _keep(
    ctx: Any,
    input: Tensor,
    layer: tuple[Tensor | None, ...],
    bits: Tensor | None,
    count: Tensor | None,
    eps: float,
    activation: Activation,
) -> None:
    mean, var, weight, bias, residual, mask = layer
    # z is computed again from these where the activation's derivative asks for it.
    needs_z = activation.name != "identity" and bits is None
    ctx.save_for_backward(
        input,
        mean,
        var,
        weight,
        bias if needs_z else None,
        residual if needs_z else None,
        mask,
        bits,
        count,
    )
    ctx.eps, ctx.activation = eps, activation
    ctx.dtypes = tuple(None if vector is None else vector.dtype for vector in (weight, bias))
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, grad_output: Tensor | None, wanted: list[bool]) -> tuple[Tensor | None, ...]:
    """The gradients of input, weight, bias and residual; ``None`` for those not wanted."""
    if grad_output is None:
        return None, None, None, None
    input, mean, var, weight, bias, residual, mask, bits, count = ctx.saved_tensors
    activation = ctx.activation
    layer = (mean, var, weight, bias, residual, mask, bits, count)
    if torch.is_grad_enabled():
        # The gradient is differentiated again: plain operations, on moments that depend on the input.
        if count is not None:
            layer = (*eager.moments(input, mask)[1:], *layer[2:])
        gradients = eager.backward(grad_output, input, *layer, ctx.eps, activation, wanted)
    elif getattr(ctx, "traced", False):
        described = (activation.name, list(activation.parameters))
        gradients = torch.ops.batchnorm.backward(grad_output, input, *layer, ctx.eps, *described, wanted)
    else:
        gradients = kernels(input, mask).backward(grad_output, input, *layer, ctx.eps, activation, wanted)
    dx, dweight, dbias, dresidual = (g if want else None for g, want in zip(gradients, wanted, strict=True))
    weight_dtype, bias_dtype = ctx.dtypes
    return (
        dx,
        None if dweight is None else dweight.to(weight_dtype),
        None if dbias is None else dbias.to(bias_dtype),
        dresidual,
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    input, weight, bias, residual, mask, eps, activation, keep_bits = inputs
    _, count, mean, var, bits = output
    layer = (mean, var, weight, bias, residual, mask)
    _keep(ctx, input, layer, bits if keep_bits else None, count, eps, activation)
    ctx.mark_non_differentiable(count, mean, var, bits)


class _BatchNorm(torch.autograd.Function):
    """Training mode. Inputs: input, weight, bias, residual, mask, eps, activation, keep_bits."""

    # With a `setup_context` of its own, torch looks up the signature at every call, which then takes 1.6 times as long
    # (a 64×16 input, medians of 25 interleaved rounds).
    @staticmethod
    def forward(ctx: Any, input: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        output: tuple[Tensor, ...] = kernels(input, arguments[3]).forward(input, *arguments)
        _setup(ctx, (input, *arguments), output)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        return *_gradients(ctx, grad_output, list(ctx.needs_input_grad[:4])), None, None, None, None


class _TransformedBatchNorm(torch.autograd.Function):
    """The same under ``torch.func``, which asks for a separate ``setup_context``."""

    @staticmethod
    def forward(input: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        output: tuple[Tensor, ...] = kernels(input, arguments[3]).forward(input, *arguments)
        return output

    setup_context = staticmethod(_setup)
    backward = staticmethod(_BatchNorm.backward)

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

        output, count, mean, var, bits = _TransformedBatchNorm.apply(
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


def _setup_normalize(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, mean, var, weight, bias, residual, mask, eps, activation = inputs
    bits = None
    if residual is not None and activation.output_tells_bit:
        bits = pack_bits(activation.is_on(output))
    # Copies: a training step in between moves the running buffers, and the gradient is that of what was computed.
    layer = (mean.clone(), var.clone(), weight, bias, residual, mask)
    _keep(ctx, input, layer, bits, None, eps, activation)


class _Normalize(torch.autograd.Function):
    """Evaluation mode. Inputs: input, mean, var, weight, bias, residual, mask, eps, activation."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        output = native.normalize(*inputs)
        _setup_normalize(ctx, inputs, output)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad
        dx, dweight, dbias, dresidual = _gradients(ctx, grad_output, [needs[0], *needs[3:6]])
        return dx, None, None, dweight, dbias, dresidual, None, None, None


# The same rules for the operators, whose backward stays an operator in the graph. Activations come by name there.


def _setup_forward_operator(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, eps, name, parameters, keep_bits = inputs
    _setup(ctx, (*tensors, eps, Activation.of(name, parameters), keep_bits), output)
    ctx.traced = True


def _backward_forward_operator(ctx: Any, grad_output: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    return *_BatchNorm.backward(ctx, grad_output), None


def _setup_normalize_operator(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, eps, name, parameters = inputs
    _setup_normalize(ctx, (*tensors, eps, Activation.of(name, parameters)), output)
    ctx.traced = True


def _backward_normalize_operator(ctx: Any, grad_output: Tensor | None) -> tuple[Tensor | None, ...]:
    return *_Normalize.backward(ctx, grad_output), None


torch.library.register_autograd(
    "batchnorm::forward", _backward_forward_operator, setup_context=_setup_forward_operator, lib=LIBRARY
)
torch.library.register_autograd(
    "batchnorm::normalize", _backward_normalize_operator, setup_context=_setup_normalize_operator, lib=LIBRARY
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
    if torch.compiler.is_compiling() and not torch._C._are_functorch_transforms_active():
        if not isinstance(count, Tensor):
            count = torch.full((), count, dtype=torch.int64, device=mean.device)
        overload = "tensor" if isinstance(momentum, Tensor) else "default"
        operator = getattr(torch.ops.batchnorm.update_running, overload)
        operator(*buffers, count, mean, var, momentum, skip_nonfinite)
    else:
        _check_models(running_mean, mean)
        running.update_running(*buffers, count, mean, var, momentum, skip_nonfinite)


def _check_models(running_mean: Tensor, mean: Tensor) -> None:
    is_batched = torch._C._functorch.is_batchedtensor
    if is_batched(mean) and not is_batched(running_mean):
        raise ArgumentError(
            "under vmap each model has statistics of its own, and the running buffers are those of one model.",
            "stack the buffers too (torch.func.stack_module_state), call eval(), or set track_running_stats=False.",
        )
