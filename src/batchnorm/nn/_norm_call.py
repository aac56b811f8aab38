"""One call of a norm layer whose arithmetic waits for what follows."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from ..activation import IDENTITY, Activation
from ._base import State

__all__ = ["ModifiedError", "NormCall", "watch"]


class _Layer(Protocol):
    training: bool

    def _state(self) -> State:
        """Weight, bias, running mean and variance, and the count of batches, as they are now."""

    def _by_state(
        self,
        state: State,
        input: Tensor,
        residual: Tensor | None,
        mask: Tensor | None,
        activation: Activation,
        training: bool,
        moves: bool = True,
    ) -> Tensor:
        """``activation(norm(input) + residual)``; whether the running buffers move."""


class ModifiedError(RuntimeError):
    """What a norm's output is computed from was modified before it was computed.

    Args:
        what: Which tensor.
        layer: The norm.
    """

    def __init__(self, what: str, layer: object) -> None:
        super().__init__(
            f"{what} of a {type(layer).__name__} was modified in place before the norm's output was used. "
            "Mend: modify a copy, or keep this norm out by fuse(where=…)."
        )
        self.what, self.layer = what, layer


class NormCall:
    """One call of a norm layer: computed once, later, and by then as it would have been computed at once.

    What it is computed from are the tensors that the layer had when it was called.

    Args:
        layer: The norm.
        input: Its input.
    """

    __slots__ = (
        "__weakref__",
        "_plain",
        "_plain_version",
        "grad",
        "input",
        "layer",
        "ran",
        "state",
        "training",
        "versions",
    )

    def __init__(self, layer: _Layer, input: Tensor) -> None:
        self.layer, self.input, self.training, self.state = layer, input, layer.training, layer._state()
        self.versions = self._versions()
        self.grad = torch.is_grad_enabled()
        self.ran = False
        self._plain: Tensor | None = None
        self._plain_version = 0

    @property
    def settled(self) -> bool:
        """Whether the norm's output has been computed alone."""
        return self._plain is not None

    def differentiable(self) -> bool:
        """Whether the output has a gradient."""
        if not self.grad:
            return False
        weight, bias, *_ = self.state
        return (
            self.input.requires_grad
            or (weight is not None and weight.requires_grad)
            or (bias is not None and bias.requires_grad)
        )

    def same_mode(self) -> bool:
        """Whether gradients are recorded now as they were when the layer was called."""
        return torch.is_grad_enabled() == self.grad

    def run(self, residual: Tensor | None, activation: Activation) -> Tensor:
        """Computes; the running buffers move the first time."""
        moves, self.ran = not self.ran, True  # whatever comes: what failed waits no more
        if self._versions() != self.versions:
            raise ModifiedError(self._modified(), self.layer)
        if _watching is not None:
            _watching.append((self.layer, residual is not None, activation))
        if self.same_mode():
            return self._compute(residual, activation, moves)
        with torch.set_grad_enabled(self.grad):
            return self._compute(residual, activation, moves)

    def settle(self) -> Tensor:
        """The norm's output alone, an ordinary tensor, the same one every time."""
        if self._plain is None:
            with torch._C.DisableTorchFunctionSubclass():
                self._plain = self.run(None, IDENTITY)
            self._plain_version = self._plain._version
        return self._plain

    def plus(self, residual: Tensor) -> Tensor:
        """The sum with the norm's output as it was when it was computed."""
        if self._plain is not None and self._plain._version == self._plain_version and self.same_mode():
            return self._plain + residual
        return self.run(residual, IDENTITY)

    def _compute(self, residual: Tensor | None, activation: Activation, moves: bool) -> Tensor:
        return self.layer._by_state(self.state, self.input, residual, None, activation, self.training, moves)

    def _versions(self) -> tuple[int, ...]:
        weight, bias, mean, var, _ = self.state
        tensors = (self.input, weight, bias) if self.training else (self.input, weight, bias, mean, var)
        return tuple([-1 if tensor is None or tensor.is_inference() else tensor._version for tensor in tensors])

    def _modified(self) -> str:
        names = ("the input", "the weight", "the bias", "the running mean", "the running variance")
        changed = zip(names, self._versions(), self.versions, strict=False)
        return next(name for name, now, before in changed if now != before)

    def __del__(self) -> None:
        # A result that nobody read: the layer has seen the batch all the same.
        if self.ran or not self.training or self.state[2] is None:
            return
        if self._versions() != self.versions:
            warnings.warn(f"{ModifiedError(self._modified(), self.layer)} Its statistics have not moved.", stacklevel=2)
            return
        with torch.no_grad():
            self._compute(None, IDENTITY, True)


# What watch() collects.
_watching: list[tuple[object, bool, Activation]] | None = None


@contextmanager
def watch() -> Iterator[list[tuple[object, bool, Activation]]]:
    """Collects what calls were computed with: the layer, whether a residual was added, the activation."""
    global _watching  # noqa: PLW0603 - one flag, looked at by every call
    before, _watching = _watching, []
    try:
        yield _watching
    finally:
        _watching = before
