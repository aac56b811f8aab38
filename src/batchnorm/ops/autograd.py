"""How autograd meets the operators: what is kept for the backward pass, and the gradients.

There is one way in for each of the two modes. A caller first asks :func:`direct_kernels`. Where it names some, nothing
watches but plain autograd:

- Nothing to differentiate: one call of the kernel.
- Else an ``autograd.Function`` around that call.

Where it names none, the call is recorded:

- Forward mode, and traced by the old ``torch.jit.trace``: plain torch operations. (An operator with
  ``register_autograd`` returns zeros under ``torch.func.jvp`` without a word, and the ``jvp`` of an
  ``autograd.Function`` is wrong once nested, as in ``jacfwd(jacfwd(f))``: torch runs it with the outer level off.)
- Traced by ``torch.compile`` or ``torch.export``: the operator ``torch.ops.batchnorm.forward``, which carries the
  same rules by ``torch.library``; inside a ``torch.func`` transform, which no operator survives, plain operations.
- Under ``torch.func``: an ``autograd.Function`` with ``vmap``.

Kept for the backward pass: the input, per-channel vectors, and with a residual either one bit an element
(piecewise linear activations) or the residual itself (the smooth ones). Never the output, never z.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..activation import IDENTITY, Activation
from ..errors import ArgumentError
from . import eager, native, running
from .bits import pack_bits, unpack_bits
from .dispatch import kernels
from .schema import LIBRARY

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
        return _batch_norm_in_two_calls(layer, running_mean, running_var, num_batches_tracked, momentum, skip_nonfinite)
    if running_mean is not None and torch._C._current_graph_task_id() != -1:
        # As running.is_recomputation() finds it: kernels that move the buffers themselves do not ask.
        running_mean = running_var = num_batches_tracked = None
    buffers = (running_mean, running_var, num_batches_tracked, momentum, skip_nonfinite)
    if _differentiable(input, weight, bias, residual):
        return _apply_batch_norm(input, weight, bias, residual, (kernel, mask, *buffers, eps, activation))
    output: Tensor = kernel.train(input, weight, bias, residual, mask, *buffers, eps, activation, False)[0]
    return output


def _batch_norm_in_two_calls(
    layer: tuple[Any, ...],
    running_mean: Tensor | None,
    running_var: Tensor | None,
    num_batches_tracked: Tensor | None,
    momentum: float | Tensor | None,
    skip_nonfinite: bool,
) -> Tensor:
    output, count, mean, var = _forward(*layer)
    if running_mean is not None and running_var is not None:
        input, mask = layer[0], layer[4]
        buffers = (running_mean, running_var, num_batches_tracked)
        running.track(_update_running, *buffers, input, mask, count, mean, var, momentum, skip_nonfinite)
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
    differentiable = _differentiable(input, weight, bias, residual)
    # Under vmap the bits of several models would share bytes: the residual is kept there instead.
    keep_bits = residual is not None and activation.needs_bit and differentiable and not transformed
    if traced:
        described = (activation.name, list(activation.parameters))
        return torch.ops.batchnorm.forward(*arguments, *described, keep_bits)[:4]
    if transformed or differentiable:
        return _FunctionalBatchNorm.apply(*arguments, activation, keep_bits)[:4]
    return kernels(input, mask).forward(*arguments, activation, keep_bits)[:4]


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
    if _differentiable(input, weight, bias, residual):
        return _apply_normalize(input, weight, bias, residual, (kernel, mean, var, mask, eps, activation))
    output: Tensor = kernel.normalize(input, mean, var, weight, bias, residual, mask, eps, activation)
    return output


def _differentiable(input: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None) -> bool:
    return torch.is_grad_enabled() and (
        input.requires_grad
        or (weight is not None and weight.requires_grad)
        or (bias is not None and bias.requires_grad)
        or (residual is not None and residual.requires_grad)
    )


def _has_tangents() -> bool:
    return forward_ad._current_level >= 0


# What computes gradients: a kernel's `backward`, or what has its signature.
_Backward = Callable[..., tuple[Tensor | None, ...]]


def _backward_operator(grad_output: Tensor, input: Tensor, *arguments: Any) -> tuple[Tensor | None, ...]:
    """``backward`` as a kernel has it, which stays one operator in a graph."""
    *layer, activation, wanted = arguments
    described = (activation.name, list(activation.parameters))
    gradients = torch.ops.batchnorm.backward(grad_output, input, *layer, *described, list(wanted))
    return tuple(gradient if want else None for gradient, want in zip(gradients, wanted, strict=True))


def _keep(
    ctx: Any,
    backward: _Backward,
    input: Tensor,
    layer: tuple[Tensor | None, ...],
    bits: Tensor | None,
    count: Tensor | None,
    eps: float,
    activation: Activation,
    direct: bool = False,
) -> None:
    mean, var, weight, bias, residual, mask = layer
    # z is computed again from these where the activation's derivative asks for it.
    needs_z = bits is None and activation.name != "identity"
    statistics: tuple[Tensor | None, ...] = (mean, var, count)
    if direct:
        # Neither inputs nor outputs, so nothing refers to itself through them; and kept so they take 1.3 µs less.
        ctx.statistics, statistics = statistics, (None, None, None)
    ctx.save_for_backward(
        input,
        *statistics,
        weight,
        bias if needs_z else None,
        residual if needs_z else None,
        mask,
        bits,
    )
    # Only the backward of the same set of kernels reads its bits.
    ctx.call = (backward, eps, activation, direct)
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, grad_output: Tensor | None, wanted: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """The gradients of input, weight, bias and residual; ``None`` for those not wanted.

    Those of the parameters are in the statistics' dtype: autograd itself converts them to the parameters'.
    """
    if grad_output is None:
        return None, None, None, None
    input, mean, var, count, weight, bias, residual, mask, bits = ctx.saved_tensors
    backward, eps, activation, direct = ctx.call
    if direct:
        mean, var, count = ctx.statistics
    if bits is not None and count is None:
        # In evaluation it is not a kernel that wrote the bits, and so none reads them.
        grad_output, bits, activation = activation.backward(grad_output, unpack_bits(bits, input)), None, IDENTITY
    if torch.is_grad_enabled() or torch._C._functorch.is_legacy_batchedtensor(grad_output):
        # The gradient is differentiated again, or comes in batches (is_grads_batched): plain operations, on moments
        # that depend on the input.
        if bits is not None:
            layer = (mean, var, weight, bias, residual, mask, bits, count)
            bits = _bits_of_plain_operations(backward, input, *layer, eps, activation)
        if count is not None:
            _, mean, var = eager.moments(input, mask)
        backward = eager.backward
    return backward(grad_output, input, mean, var, weight, bias, residual, mask, bits, count, eps, activation, wanted)


@torch.no_grad()
def _bits_of_plain_operations(backward: _Backward, input: Tensor, *layer: Any) -> Tensor:
    """Bits that any kernel wrote, as :mod:`eager` reads them; a residual's gradient tells them."""
    slope = backward(torch.ones_like(input), input, *layer, (False, False, False, True))[3]
    assert slope is not None
    return pack_bits(slope == 1)


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
        _keep(ctx, kernel.backward, input, layer, bits if keep_bits else None, count, eps, activation, direct=True)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None) -> tuple[Tensor | None, ...]:
        return *_gradients(ctx, grad_output, ctx.needs_input_grad[:4]), None


def _setup_forward(ctx: Any, backward: _Backward, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    input, weight, bias, residual, mask, eps, activation, keep_bits = inputs
    _, count, mean, var, bits = output
    layer = (mean, var, weight, bias, residual, mask)
    _keep(ctx, backward, input, layer, bits if keep_bits else None, count, eps, activation)
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
        return *_gradients(ctx, grad_output, ctx.needs_input_grad[:4]), None, None, None, None

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


def _keep_normalize(
    ctx: Any,
    backward: _Backward,
    input: Tensor,
    layer: tuple[Any, ...],
    eps: float,
    activation: Activation,
    output: Tensor,
) -> None:
    mean, var, weight, bias, residual, mask = layer
    bits = None
    if residual is not None and activation.output_tells_bit:
        bits = pack_bits(activation.is_on(output))
    # Copies: a training step in between moves the running buffers, and the gradient is that of what was computed.
    layer = (mean.clone(), var.clone(), weight, bias, residual, mask)
    _keep(ctx, backward, input, layer, bits, None, eps, activation)


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
        output: Tensor = kernel.normalize(input, *layer, eps, activation)
        _keep_normalize(ctx, kernels(input, mask).backward, input, layer, eps, activation, output)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None) -> tuple[Tensor | None, ...]:
        return *_gradients(ctx, grad_output, ctx.needs_input_grad[:4]), None


# `Function.apply` looks for torch.func's transforms and for what they left behind in every argument (1.6 µs). Under a
# transform nothing comes here, so this is the `apply` of the class above it, which does the work.
_apply_batch_norm = super(torch.autograd.Function, _BatchNorm).apply
_apply_normalize = super(torch.autograd.Function, _Normalize).apply


# The same rules for the operator that graphs record, whose backward stays an operator there. The activation comes by
# name.


def _setup_forward_operator(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, eps, name, parameters, keep_bits = inputs
    _setup_forward(ctx, _backward_operator, (*tensors, eps, Activation.of(name, parameters), keep_bits), output)


def _backward_forward_operator(ctx: Any, grad_output: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    return *_gradients(ctx, grad_output, ctx.needs_input_grad[:4]), None, None, None, None, None


torch.library.register_autograd(
    "batchnorm::forward", _backward_forward_operator, setup_context=_setup_forward_operator, lib=LIBRARY
)


def _update_running(
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
