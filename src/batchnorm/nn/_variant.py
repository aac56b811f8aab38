"""Norms whose activation is an argument: torch's class where they have none, and never where they have one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from ..activation import IDENTITY, Activation, ActivationLike, as_activation
from ..functional import Nonfinite
from ._base import Norm

__all__ = ["Variant", "by_name", "without_activation"]


class Variant(Norm):
    """A norm that takes a residual, a mask and an activation.

    An activation must not be lost: what looks for a batch norm by its class (``convert_sync_batchnorm``, pattern
    matchers) would replace the layer by one and drop it without a word. So a layer that has one is no torch
    ``_BatchNorm``; one that has none is (:func:`without_activation`), and goes wherever that goes.
    """

    _plain: ClassVar[type[Variant] | None] = None
    activation: Activation

    def __new__(cls, *arguments: Any, activation: ActivationLike = None, **others: Any) -> Variant:
        """The class itself, or its form without an activation."""
        plain = cls.__dict__.get("_plain")  # not by inheritance: a user's subclass is what it says
        return object.__new__(plain if plain is not None and as_activation(activation) == IDENTITY else cls)

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: ActivationLike = None,
        bias: bool = True,
        nonfinite: Nonfinite = "skip",
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias, nonfinite=nonfinite
        )
        self.activation = as_activation(activation)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The form without an activation has no name of its own to be found by.
        state: list[Any] = list(super().__reduce_ex__(max(protocol, 2)))[2:]
        return (_empty, by_name(type(self)), *state)

    def forward(self, input: Tensor, residual: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """``activation(norm(input) + residual)``; see :func:`batchnorm.functional.batch_norm`."""
        return self._normalize(input, residual, mask, self.activation)

    def extra_repr(self) -> str:
        """As the plain layer's, and the activation where there is one."""
        shown = super().extra_repr()
        return shown if self.activation == IDENTITY else f"{shown}, activation={self.activation!r}"


def by_name(cls: type[torch.nn.Module]) -> tuple[type[torch.nn.Module], bool]:
    """The class that can be found by its name, and whether it stands for its form without an activation."""
    bases = [base for base in cls.__mro__ if base.__dict__.get("_plain") is cls]
    return (bases[0], True) if bases else (cls, False)


_V = TypeVar("_V", bound=type[Variant])


def without_activation(torch_class: type[torch.nn.Module]) -> Callable[[_V], _V]:
    """Class decorator: built without an activation, a layer is also a ``torch_class``."""

    def decorate(cls: _V) -> _V:
        own = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
        cls._plain = type(cls.__name__, (cls, torch_class), own)
        return cls

    return decorate


def _empty(cls: type[Variant], plain: bool) -> Variant:
    return object.__new__(cls._plain if plain and cls._plain is not None else cls)
