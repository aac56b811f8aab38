"""``jax.jit`` of the same step, compiled as one function: forward, backward and running statistics.

JAX brings its own threads, whose number is not torch's to set.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

from torch import Tensor
from torch.utils.dlpack import from_dlpack

from ..cases import Case
from ..contenders import JAX
from ..inputs import Inputs
from .peer import Around, Contender, Unavailable

__all__ = ["Jax"]

_DTYPES = ("float32", "bfloat16")
_MOMENTUM, _EPS = 0.1, 1e-5
_VECTORS = ("weight", "bias", "running_mean", "running_var")


class Jax:
    """JAX on the CPU, with the statistics in float32."""

    name = JAX

    def build(self, case: Case, device: str = "cpu") -> Contender:
        """Makes the function; it is compiled when it first runs."""
        if device != "cpu":
            raise Unavailable("jax is measured on the CPU only")
        if importlib.util.find_spec("jax") is None:
            raise Unavailable("jax is not installed")
        if case.dtype not in _DTYPES:
            raise Unavailable(f"jax is measured in {' and '.join(_DTYPES)} only")
        return _JaxContender(case)


def _step(jax: Any, case: Case, axis: int) -> Callable[..., Any]:
    """The step of a case as a function of arrays."""
    numpy = jax.numpy
    activate = {"identity": lambda z: z, "relu": jax.nn.relu, "relu6": jax.nn.relu6, "silu": jax.nn.silu}
    dims = len(case.shape)
    others = tuple(place for place in range(dims) if place != axis)
    count = 1
    for place, length in enumerate(case.shape):
        count *= 1 if place == 1 else length

    def row(vector: Any) -> Any:
        return vector.reshape([-1 if place == axis else 1 for place in range(dims)])

    def normalized(x: Any, residual: Any, weight: Any, bias: Any, mean: Any, var: Any) -> Any:
        scale = weight * jax.lax.rsqrt(var + _EPS)
        z = (x.astype(numpy.float32) - row(mean)) * row(scale) + row(bias)
        if residual is not None:
            z = z + residual.astype(numpy.float32)
        return activate[case.activation](z).astype(x.dtype)

    def loss(x: Any, residual: Any, weight: Any, bias: Any, dy: Any) -> Any:
        wide = x.astype(numpy.float32)
        mean = wide.mean(others)
        var = numpy.square(wide - row(mean)).mean(others)
        y = normalized(x, residual, weight, bias, mean, var)
        return (y.astype(numpy.float32) * dy.astype(numpy.float32)).sum(), (y, mean, var)

    def train(x: Any, residual: Any, dy: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any) -> Any:
        wanted = (0, 2, 3) if residual is None else (0, 1, 2, 3)
        slopes, (y, mean, var) = jax.grad(loss, wanted, has_aux=True)(x, residual, weight, bias, dy)
        moved = (1 - _MOMENTUM) * running_mean + _MOMENTUM * mean
        spread = (1 - _MOMENTUM) * running_var + _MOMENTUM * var * (count / (count - 1))
        return (y, *slopes, moved, spread)

    def evaluate(x: Any, residual: Any, dy: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any) -> Any:
        return (normalized(x, residual, weight, bias, running_mean, running_var),)

    return train if case.training else evaluate


class _JaxContender:
    around: Around = nullcontext

    def __init__(self, case: Case) -> None:
        self.case = case
        jax: Any = importlib.import_module("jax")
        self.jax = jax
        self.device = jax.devices("cpu")[0]
        self.last = case.format == "channels-last"
        self.function = jax.jit(_step(jax, case, len(case.shape) - 1 if self.last else 1))
        self.pool: list[tuple[Any, ...]] = []
        self.turn = 0

    def _array(self, tensor: Tensor | None) -> Any:
        if tensor is None:
            return None
        # JAX has no strides: channels-last is an array whose last axis is the channels'.
        stored = tensor.movedim(1, -1) if self.last and tensor.dim() > 1 else tensor
        array = self.jax.numpy.from_dlpack(stored.contiguous())
        return self.jax.device_put(array.copy(), self.device)

    def _tensor(self, array: Any) -> Tensor:
        tensor: Tensor = from_dlpack(array).clone()
        return tensor.movedim(-1, 1) if self.last and tensor.dim() > 1 else tensor

    def _arguments(self, inputs: Inputs) -> tuple[Any, ...]:
        vectors = [getattr(inputs, name) for name in _VECTORS]
        return tuple(self._array(each) for each in (inputs.x, inputs.residual, inputs.dy, *vectors))

    def results(self, inputs: Inputs) -> dict[str, Tensor]:
        """One step."""
        found = [self._tensor(array) for array in self.function(*self._arguments(inputs))]
        names = ["output", "grad_input", *["grad_residual"] * self.case.residual, "grad_weight", "grad_bias"]
        return dict(zip([*names, "running_mean", "running_var"], found, strict=False))

    def kept(self, inputs: Inputs) -> int | None:
        """Forward and backward are one compiled function: what it holds in between cannot be seen."""
        return None if self.case.training else 0

    def load(self, pool: Sequence[Inputs]) -> None:
        """Takes the inputs to rotate through."""
        self.pool = [self._arguments(inputs) for inputs in pool]

    def step(self) -> None:
        """One step, waited for."""
        self.turn = (self.turn + 1) % len(self.pool)
        self.jax.block_until_ready(self.function(*self.pool[self.turn]))
