"""The activations that fuse into a norm: name, parameters, formula and derivative, one row each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import ArgumentError

__all__ = ["ACTIVATIONS", "Activation", "ActivationLike", "as_activation"]

Parameters: TypeAlias = tuple[float, ...]


@dataclass(frozen=True)
class _Kind:
    """One row of the table: everything the kernels need to know about an activation.

    Attributes:
        defaults: Parameters by name with torch's default values, in the order the operators take them.
        apply: ``(z, *parameters) -> activation(z)``, in operations that torch can export.
        derivative: ``(z, *parameters) -> activation'(z)``, itself differentiable, with torch's own choice at
            each kink.
        slopes: For a piecewise linear activation the derivative as ``(off, on)``, where one bit an element
            says which side of the kink it is on; ``None`` where the derivative needs the value of z.
        is_on: For a piecewise linear activation that bit, ``(z, *parameters) -> bool tensor``.
        in_place: As ``apply``, overwriting z; ``None`` where torch has no such form.
    """

    defaults: dict[str, float]
    apply: Callable[..., Tensor]
    derivative: Callable[..., Tensor]
    slopes: Callable[..., tuple[float, float]] | None = None
    is_on: Callable[..., Tensor] | None = None
    in_place: Callable[..., Tensor] | None = None


def _piecewise_linear(
    defaults: dict[str, float],
    apply: Callable[..., Tensor],
    slopes: Callable[..., tuple[float, float]],
    is_on: Callable[..., Tensor],
    in_place: Callable[..., Tensor],
) -> _Kind:
    def derivative(z: Tensor, *parameters: float) -> Tensor:
        off, on = slopes(*parameters)
        return _choose(is_on(z, *parameters), off, on, z)

    return _Kind(defaults, apply, derivative, slopes, is_on, in_place)


def _choose(on: Tensor, when_off: float, when_on: float, like: Tensor) -> Tensor:
    # torch.where between two numbers would round both to the default dtype.
    return torch.full_like(like, when_off).masked_fill(on, when_on)


def _silu_derivative(z: Tensor) -> Tensor:
    s = torch.sigmoid(z)
    return s * (1 + z * (1 - s))


def _hardswish_derivative(z: Tensor) -> Tensor:
    return torch.where(z <= -3, 0.0, torch.where(z < 3, z / 3 + 0.5, 1.0))


def _gelu_derivative(z: Tensor) -> Tensor:
    cumulative = 0.5 * (1 + torch.erf(z * math.sqrt(0.5)))
    density = torch.exp(-0.5 * z * z) * (1 / math.sqrt(2 * math.pi))
    # z² overflows long before z does: the density is 0 there, and inf · 0 would be NaN.
    return cumulative + torch.where(density == 0, 0.0, z * density)


def _gelu_tanh_derivative(z: Tensor) -> Tensor:
    scale, cubic = math.sqrt(2 / math.pi), 0.044715
    t = torch.tanh(scale * (z + cubic * z * z * z))
    sech2 = 1 - t * t
    return 0.5 * (1 + t) + torch.where(sech2 == 0, 0.0, 0.5 * z * sech2 * scale * (1 + 3 * cubic * z * z))


def _sigmoid_derivative(z: Tensor) -> Tensor:
    s = torch.sigmoid(z)
    return s * (1 - s)


def _tanh_derivative(z: Tensor) -> Tensor:
    t = torch.tanh(z)
    return 1 - t * t


def _elu_derivative(z: Tensor, alpha: float) -> Tensor:
    # The exponent is cut at 0: the branch not taken must not overflow, or its gradient is NaN.
    return torch.where(z <= 0, alpha * torch.exp(torch.clamp(z, max=0.0)), 1.0)


# The bits are written as torch's kernels decide: a NaN counts as on, except for leaky_relu.
ACTIVATIONS: dict[str, _Kind] = {
    "identity": _Kind({}, lambda z: z, torch.ones_like),
    "relu": _piecewise_linear({}, torch.relu, lambda: (0.0, 1.0), lambda z: ~(z <= 0), torch.relu_),
    "leaky_relu": _piecewise_linear(
        {"negative_slope": 0.01}, F.leaky_relu, lambda slope: (slope, 1.0), lambda z, _: z > 0, F.leaky_relu_
    ),
    "relu6": _piecewise_linear(
        {}, F.relu6, lambda: (0.0, 1.0), lambda z: ~((z <= 0) | (z >= 6)), lambda z: F.hardtanh_(z, 0.0, 6.0)
    ),
    "hardtanh": _piecewise_linear(
        {"min_val": -1.0, "max_val": 1.0},
        F.hardtanh,
        lambda low, high: (0.0, 1.0),
        lambda z, low, high: ~((z <= low) | (z >= high)),
        F.hardtanh_,
    ),
    "silu": _Kind({}, F.silu, _silu_derivative, in_place=lambda z: F.silu(z, inplace=True)),
    "hardswish": _Kind({}, F.hardswish, _hardswish_derivative, in_place=lambda z: F.hardswish(z, inplace=True)),
    "gelu": _Kind({}, F.gelu, _gelu_derivative),
    "gelu_tanh": _Kind({}, lambda z: F.gelu(z, approximate="tanh"), _gelu_tanh_derivative),
    "sigmoid": _Kind({}, torch.sigmoid, _sigmoid_derivative, in_place=torch.sigmoid_),
    "tanh": _Kind({}, torch.tanh, _tanh_derivative, in_place=torch.tanh_),
    "elu": _Kind({"alpha": 1.0}, F.elu, _elu_derivative, in_place=F.elu_),
}


class Activation:
    """An activation with its parameters, as the fused operators take it.

    Args:
        name: One of ``identity``, ``relu``, ``leaky_relu`` (``negative_slope=0.01``), ``relu6``, ``hardtanh``
            (``min_val=-1``, ``max_val=1``), ``silu``, ``hardswish``, ``gelu``, ``gelu_tanh``, ``sigmoid``,
            ``tanh``, ``elu`` (``alpha=1``): torch's names, defaults and formulas.
        **parameters: The activation's parameters, by torch's names.

    Raises:
        ArgumentError: Unknown name or parameter.

    Example:
        >>> Activation("leaky_relu", negative_slope=0.1)
        Activation('leaky_relu', negative_slope=0.1)
        >>> Activation("relu")(torch.tensor([-1.0, 2.0]))
        tensor([0., 2.])
    """

    __slots__ = ("name", "parameters")

    name: str
    parameters: Parameters

    def __init__(self, name: str, **parameters: float) -> None:
        kind = ACTIVATIONS.get(name)
        if kind is None:
            raise ArgumentError(
                f"{name!r} is no activation that fuses.",
                f"use one of {', '.join(ACTIVATIONS)}, or apply yours after the layer.",
            )
        unknown = sorted(set(parameters) - set(kind.defaults))
        if unknown:
            raise ArgumentError(
                f"{name!r} has no parameter {', '.join(unknown)}.",
                f"it takes {', '.join(kind.defaults) or 'none'}.",
            )
        self.name = name
        self.parameters = tuple(float(parameters.get(key, value)) for key, value in kind.defaults.items())

    @classmethod
    def of(cls, name: str, parameters: Sequence[float]) -> Activation:
        """The activation that an operator's arguments tell, from its name and its numbers in order."""
        return cls(name, **dict(zip(ACTIVATIONS[name].defaults, parameters, strict=True)))

    @property
    def needs_value(self) -> bool:
        """Whether the derivative needs the value of z rather than one bit of it."""
        return self.name != "identity" and ACTIVATIONS[self.name].slopes is None

    @property
    def needs_bit(self) -> bool:
        """Whether one bit an element is all that the derivative needs."""
        return ACTIVATIONS[self.name].slopes is not None

    def slope(self, on: Tensor, like: Tensor) -> Tensor:
        """The derivative by its bits, of the shape and dtype of ``like`` (piecewise linear activations only)."""
        slopes = ACTIVATIONS[self.name].slopes
        assert slopes is not None
        return _choose(on, *slopes(*self.parameters), like)

    def is_on(self, z: Tensor) -> Tensor:
        """The bit, as a bool tensor of z's shape (piecewise linear activations only)."""
        is_on = ACTIVATIONS[self.name].is_on
        assert is_on is not None
        return is_on(z, *self.parameters)

    def __call__(self, z: Tensor) -> Tensor:
        """``activation(z)``, of z's shape and dtype."""
        return ACTIVATIONS[self.name].apply(z, *self.parameters)

    def in_place(self, z: Tensor) -> Tensor:
        """``activation(z)`` in the memory of z where torch can; z is lost either way."""
        kind = ACTIVATIONS[self.name]
        return (kind.in_place or kind.apply)(z, *self.parameters)

    def derivative(self, z: Tensor) -> Tensor:
        """``activation'(z)``, of z's shape and dtype; differentiable again."""
        return ACTIVATIONS[self.name].derivative(z, *self.parameters)

    def __repr__(self) -> str:
        named = zip(ACTIVATIONS[self.name].defaults, self.parameters, strict=True)
        return f"Activation({', '.join([repr(self.name), *(f'{key}={value:g}' for key, value in named)])})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Activation):
            return NotImplemented
        return (self.name, self.parameters) == (other.name, other.parameters)

    def __hash__(self) -> int:
        return hash((self.name, self.parameters))


ActivationLike: TypeAlias = "str | Activation | torch.nn.Module | None"

IDENTITY = Activation("identity")

# What each torch module says, as ours. Exact types: a subclass may compute something else.
_MODULES: dict[type[torch.nn.Module], Callable[..., Activation]] = {
    torch.nn.Identity: lambda m: IDENTITY,
    torch.nn.ReLU: lambda m: Activation("relu"),
    torch.nn.LeakyReLU: lambda m: Activation("leaky_relu", negative_slope=m.negative_slope),
    torch.nn.ReLU6: lambda m: Activation("relu6"),
    torch.nn.Hardtanh: lambda m: Activation("hardtanh", min_val=m.min_val, max_val=m.max_val),
    torch.nn.SiLU: lambda m: Activation("silu"),
    torch.nn.Hardswish: lambda m: Activation("hardswish"),
    torch.nn.GELU: lambda m: Activation("gelu_tanh" if m.approximate == "tanh" else "gelu"),
    torch.nn.Sigmoid: lambda m: Activation("sigmoid"),
    torch.nn.Tanh: lambda m: Activation("tanh"),
    torch.nn.ELU: lambda m: Activation("elu", alpha=m.alpha),
}


def as_activation(activation: ActivationLike) -> Activation:
    """The activation meant by a name, an :class:`Activation`, a torch activation module or ``None``.

    Args:
        activation: A name with its default parameters (``"relu"``), an :class:`Activation`, an instance of a
            torch activation module (its parameters are taken over), or ``None`` for the identity.

    Raises:
        ArgumentError: Nothing that fuses is meant.

    Example:
        >>> as_activation(torch.nn.LeakyReLU(0.2))
        Activation('leaky_relu', negative_slope=0.2)
    """
    if isinstance(activation, Activation):
        return activation
    if activation is None:
        return IDENTITY
    if isinstance(activation, str):
        return _BY_NAME.get(activation) or Activation(activation)
    build = _MODULES.get(type(activation))
    if build is not None:
        return build(activation)
    raise ArgumentError(
        f"{activation!r} is no activation that fuses.",
        f"use one of {', '.join(ACTIVATIONS)} or the torch module of that name, or apply yours after the layer.",
    )


_BY_NAME = {name: Activation(name) for name in ACTIVATIONS}
