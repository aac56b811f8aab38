"""Every operator's signature and fake, on one screen. ``torch.ops.batchnorm`` holds what is defined here.

Formulas and shapes are those of :mod:`batchnorm.ops.eager`; here stand the contract's outer sides:

- Operators are functional but for ``update_running`` and ``train``, which move the running buffers: one that mutates
  cannot carry an autograd formula. ``train`` is ``forward`` and ``update_running`` in one call, for eager mode.
- An output that was not asked for is a tensor of no elements, since an operator cannot return nothing.
- ``output``, ``grad_input`` and ``grad_residual`` have the strides that ``torch.empty_like(input)`` has.
- ``count`` in ``backward`` is that of the input given. Where the statistics are those of more (other ranks), the two
  primitives and the sum between them take its place.
- ``bits`` has one bit an element, each channel's rounded up to whole bytes. Their layout belongs to the kernel that
  wrote them: only its own backward reads them.

The Python implementations serve every device that has no compiled kernel. A compiled one registers for its own dispatch
key (CPU, CUDA), where graphs find it, and enters :mod:`batchnorm.ops.dispatch`, where eager mode does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..activation import Activation
from . import eager
from .bits import bits_size
from .dispatch import primitives, python_kernels, running_mover

__all__ = ["LIBRARY", "SCHEMAS"]

_LAYER = "Tensor mean, Tensor var, Tensor? weight, Tensor? bias, Tensor? residual, Tensor? mask"
_ACTIVATION = "float eps, str activation, float[] parameters"
_RUNNING = "Tensor(a!) running_mean, Tensor(b!) running_var, Tensor(c!)? num_batches_tracked"
_BATCH = "Tensor count, Tensor mean, Tensor var"
_INPUT = "Tensor input, Tensor? weight, Tensor? bias, Tensor? residual, Tensor? mask"
_TRAINED = "(Tensor output, Tensor count, Tensor mean, Tensor var, Tensor bits)"
_TRACKED = (
    "Tensor(a!)? running_mean, Tensor(b!)? running_var, Tensor(c!)? num_batches_tracked, float? momentum,"
    " bool skip_nonfinite"
)

SCHEMAS = (
    "moments(Tensor input, Tensor? mask) -> (Tensor count, Tensor mean, Tensor var)",
    "double_moments(Tensor input, Tensor? mask) -> (Tensor count, Tensor mean, Tensor var)",
    f"normalize(Tensor input, {_LAYER}, {_ACTIVATION}) -> Tensor",
    f"grad_sums(Tensor grad_output, Tensor input, {_LAYER}, Tensor? bits, {_ACTIVATION})"
    " -> (Tensor sum_dz, Tensor sum_dz_standardized)",
    f"grad_input(Tensor grad_output, Tensor input, {_LAYER}, Tensor? bits, Tensor? count, Tensor? sum_dz,"
    f" Tensor? sum_dz_standardized, {_ACTIVATION}, bool keep_residual)"
    " -> (Tensor grad_input, Tensor grad_residual)",
    f"forward({_INPUT}, {_ACTIVATION}, bool keep_bits) -> {_TRAINED}",
    f"backward(Tensor grad_output, Tensor input, {_LAYER}, Tensor? bits, Tensor? count, {_ACTIVATION},"
    " bool[4] wanted)"
    " -> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias, Tensor grad_residual)",
    f"train({_INPUT}, {_TRACKED}, {_ACTIVATION}, bool keep_bits) -> {_TRAINED}",
    f"update_running({_RUNNING}, {_BATCH}, float momentum, bool skip_nonfinite) -> ()",
    f"update_running.tensor({_RUNNING}, {_BATCH}, Tensor momentum, bool skip_nonfinite) -> ()",
)

LIBRARY = torch.library.Library("batchnorm", "DEF")


def _operator(schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> None:
    name = schema[: schema.index("(")]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")

    def checked(*arguments: Any) -> Any:
        # Beside one tensor on the meta device, torch takes the fake for the kernel, and its empty memory for a result.
        devices = {argument.device for argument in arguments if isinstance(argument, Tensor)}
        if len(devices) > 1:
            raise RuntimeError(
                f"batchnorm::{name}: tensors on different devices: {', '.join(sorted(map(str, devices)))}"
            )
        return fake(*arguments)

    torch.library.register_fake(f"batchnorm::{name}", checked, lib=LIBRARY)


def _conform(output: Tensor, input: Tensor, wanted: bool = True) -> Tensor:
    if not wanted:
        return output.new_empty(0)
    expected = torch.empty_like(input)
    same = output.stride() == expected.stride() and output.dtype == expected.dtype
    return output if same else expected.copy_(output)


def _moments(input: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    found: tuple[Tensor, Tensor, Tensor] = primitives(input).moments(input, mask)
    return found


def _double_moments(input: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    found: tuple[Tensor, Tensor, Tensor] = primitives(input).double_moments(input, mask)
    return found


def _normalize(input: Tensor, *arguments: Any) -> Tensor:
    *layer, name, parameters = arguments
    kernel = python_kernels(input, layer[5], evaluation=True)
    return _conform(kernel.normalize(input, *layer, Activation.of(name, parameters)), input)


def _grad_sums(grad_output: Tensor, input: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    *layer, name, parameters = arguments
    activation = Activation.of(name, parameters)
    sums: tuple[Tensor, Tensor] = primitives(input).grad_sums(grad_output, input, *layer, activation)
    return sums


def _grad_input(grad_output: Tensor, input: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    *layer, name, parameters, keep_residual = arguments
    activation = Activation.of(name, parameters)
    dx, dz = primitives(input).grad_input(grad_output, input, *layer, activation, keep_residual)
    return _conform(dx, input), input.new_empty(0) if dz is None else _own(_conform(dz, input), grad_output)


def _own(gradient: Tensor, grad_output: Tensor) -> Tensor:
    return gradient.clone() if gradient is grad_output else gradient  # no output may be an input


def _forward(input: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    *layer, name, parameters, keep_bits = arguments
    output, *kept = python_kernels(input, layer[3]).forward(input, *layer, Activation.of(name, parameters), keep_bits)
    return _conform(output, input), *kept


def _train(input: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    *layer, name, parameters, keep_bits = arguments
    output, *kept = python_kernels(input, layer[3]).train(input, *layer, Activation.of(name, parameters), keep_bits)
    return _conform(output, input), *kept


def _backward(grad_output: Tensor, input: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    *layer, eps, name, parameters, wanted = arguments
    kernel = python_kernels(input, layer[5])
    found = kernel.backward(grad_output, input, *layer, eps, Activation.of(name, parameters), wanted)
    dx, dweight, dbias, dz = (input.new_empty(0) if gradient is None else gradient for gradient in found)
    return _conform(dx, input, wanted[0]), dweight, dbias, _own(_conform(dz, input, wanted[3]), grad_output)


def _update_running(running_mean: Tensor, running_var: Tensor, num_batches_tracked: Tensor | None, *batch: Any) -> None:
    running_mover(batch[1], direct=False)(running_mean, running_var, num_batches_tracked, *batch)


def _vector(input: Tensor) -> Tensor:
    return input.new_empty(input.shape[1], dtype=eager.statistics_dtype(input.dtype))


def _fake_moments(input: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    return input.new_empty((), dtype=torch.int64), _vector(input), _vector(input)


def _fake_double_moments(input: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    wide = input.new_empty(input.shape[1], dtype=torch.float64)
    return input.new_empty((), dtype=torch.int64), wide, torch.empty_like(wide)


def _fake_gradients(input: Tensor, keep_residual: bool) -> tuple[Tensor, Tensor]:
    return torch.empty_like(input), torch.empty_like(input) if keep_residual else input.new_empty(0)


def _fake_forward(input: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    bits = bits_size(input) if arguments[-1] else 0
    return torch.empty_like(input), *_fake_moments(input, None), input.new_empty(bits, dtype=torch.uint8)


def _fake_backward(grad_output: Tensor, input: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    every = (torch.empty_like(input), _vector(input), _vector(input), torch.empty_like(input))
    return tuple(fake if want else input.new_empty(0) for fake, want in zip(every, arguments[-1], strict=True))


_IMPLEMENTATIONS: tuple[tuple[Callable[..., Any], ...], tuple[Callable[..., Any], ...]] = (
    (
        _moments,
        _double_moments,
        _normalize,
        _grad_sums,
        _grad_input,
        _forward,
        _backward,
        _train,
        _update_running,
        _update_running,
    ),
    (
        _fake_moments,
        _fake_double_moments,
        lambda input, *arguments: torch.empty_like(input),
        lambda grad_output, input, *arguments: (_vector(input), _vector(input)),
        lambda grad_output, input, *arguments: _fake_gradients(input, arguments[-1]),
        _fake_forward,
        _fake_backward,
        _fake_forward,
        lambda *arguments: None,
        lambda *arguments: None,
    ),
)

for _schema, _implementation, _fake in zip(SCHEMAS, *_IMPLEMENTATIONS, strict=True):
    _operator(_schema, _implementation, _fake)
