"""One call of a norm layer whose arithmetic waits for what follows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from ..activation import IDENTITY, Activation

__all__ = ["NormCall", "modified", "version", "watch"]


class _Layer(Protocol):
    training: bool
    running_mean: Tensor | None
    _parameters: dict[str, torch.nn.Parameter | None]

    def _compute(self, call: NormCall, residual: Tensor | None, activation: Activation, moves: bool) -> Tensor:
        """``activation(norm(call.input) + residual)``; whether the running buffers move."""


class NormCall:
    """One call of a norm layer: computed once, later, and by then as it would have been computed at once.

    Args:
        layer: The norm.
        input: Its input.

    Attributes:
        plain: The norm's output alone, once it has been computed.
    """

    __slots__ = ("__weakref__", "grad", "input", "layer", "plain", "ran", "training", "versions")

    def __init__(self, layer: _Layer, input: Tensor) -> None:
        self.layer, self.input, self.training = layer, input, layer.training
        self.versions = self._versions()
        self.grad = torch.is_grad_enabled()
        self.ran = False
        self.plain: Tensor | None = None

    def differentiable(self) -> bool:
        """Whether the output has a gradient."""
        if not self.grad:
            return False
        if self.input.requires_grad:
            return True
        parameters = self.layer._parameters.values()
        return any(each is not None and each.requires_grad for each in parameters)

    def same_mode(self) -> bool:
        """Whether gradients are recorded now as they were when the layer was called."""
        return torch.is_grad_enabled() == self.grad

    def run(self, residual: Tensor | None, activation: Activation) -> Tensor:
        """Computes; the running buffers move the first time."""
        moves, self.ran = not self.ran, True  # whatever comes: what failed waits no more
        if self._versions() != self.versions:
            what = "the input" if version(self.input) != self.versions[0] else "the running statistics"
            raise RuntimeError(modified(what, self.layer))
        if _watching is not None:
            _watching.append((self.layer, residual is not None, activation))
        if self.same_mode():
            return self.layer._compute(self, residual, activation, moves)
        with torch.set_grad_enabled(self.grad):
            return self.layer._compute(self, residual, activation, moves)

    def settle(self) -> Tensor:
        """The norm's output alone, an ordinary tensor, the same one every time."""
        if self.plain is None:
            with torch._C.DisableTorchFunctionSubclass():
                self.plain = self.run(None, IDENTITY)
        return self.plain

    def _versions(self) -> tuple[int, int]:
        mean = None if self.training else self.layer.running_mean
        return version(self.input), 0 if mean is None else version(mean)

    def __del__(self) -> None:
        # A result that nobody read: the layer has seen the batch all the same.
        if not self.ran and self.training and self.layer.running_mean is not None:
            with torch.no_grad():
                self.layer._compute(self, None, IDENTITY, True)


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


def version(tensor: Tensor) -> int:
    """How often it was modified in place; an inference tensor does not count."""
    return 0 if tensor.is_inference() else tensor._version


def modified(what: str, layer: object) -> str:
    """What is raised where something has changed since."""
    return (
        f"{what} of a {type(layer).__name__} was modified in place before the norm's output was used. "
        "Mend: keep this norm out of fuse(), or modify a copy."
    )
