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
        in_place: As ``apply``, overwriting z; ``None`` where torch has no such form.
        derivative: ``(z, *parameters) -> activation'(z)``, itself differentiable, with torch's own choice at
            each kink; ``None`` for a piecewise linear activation, which has the next two instead.
        is_on: ``(z, *parameters) -> bool tensor``: whether the derivative is 1. One bit an element is then all that
            the backward pass needs.
        slope_off: ``(*parameters) -> float``: the derivative elsewhere.
    """

    defaults: dict[str, float]
    apply: Callable[..., Tensor]
    in_place: Callable[..., Tensor] | None = None
    derivative: Callable[..., Tensor] | None = None
    is_on: Callable[..., Tensor] | None = None
    slope_off: Callable[..., float] = lambda *parameters: 0.0


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


# At a NaN the bits are on, except for leaky_relu: as torch's scalar kernels decide (its vectorised ones vary).
ACTIVATIONS: dict[str, _Kind] = {
    "identity": _Kind({}, lambda z: z, derivative=torch.ones_like),
    "relu": _Kind({}, torch.relu, torch.relu_, is_on=lambda z: ~(z <= 0)),
    "leaky_relu": _Kind(
        {"negative_slope": 0.01}, F.leaky_relu, F.leaky_relu_, is_on=lambda z, _: z > 0, slope_off=lambda slope: slope
    ),
    "relu6": _Kind({}, F.relu6, lambda z: F.hardtanh_(z, 0.0, 6.0), is_on=lambda z: ~((z <= 0) | (z >= 6))),
    "hardtanh": _Kind(
        {"min_val": -1.0, "max_val": 1.0},
        F.hardtanh,
        F.hardtanh_,
        is_on=lambda z, low, high: ~((z <= low) | (z >= high)),
    ),
    "silu": _Kind({}, F.silu, lambda z: F.silu(z, inplace=True), _silu_derivative),
    "hardswish": _Kind({}, F.hardswish, lambda z: F.hardswish(z, inplace=True), _hardswish_derivative),
    "gelu": _Kind({}, F.gelu, derivative=_gelu_derivative),
    "gelu_tanh": _Kind({}, lambda z: F.gelu(z, approximate="tanh"), derivative=_gelu_tanh_derivative),
    "sigmoid": _Kind({}, torch.sigmoid, torch.sigmoid_, _sigmoid_derivative),
    "tanh": _Kind({}, torch.tanh, torch.tanh_, _tanh_derivative),
    "elu": _Kind({"alpha": 1.0}, F.elu, F.elu_, _elu_derivative),
}


_BOUNDS = ACTIVATIONS["hardtanh"].defaults


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
        low, high = (parameters.get(key, value) for key, value in _BOUNDS.items())
        if name == "hardtanh" and low >= high:
            raise ArgumentError(f"hardtanh from {low} to {high} holds nothing.", "give min_val < max_val.")
        self.name = name
        self.parameters = tuple(float(parameters.get(key, value)) for key, value in kind.defaults.items())

    @classmethod
    def of(cls, name: str, parameters: Sequence[float]) -> Activation:
        """The activation that an operator's arguments tell, from its name and its numbers in order."""
        return cls(name, **dict(zip(ACTIVATIONS[name].defaults, parameters, strict=True)))

    @property
    def needs_bit(self) -> bool:
        """Whether one bit an element is all that the derivative needs."""
        return ACTIVATIONS[self.name].is_on is not None

    @property
    def needs_value(self) -> bool:
        """Whether the derivative needs the value of z rather than one bit of it."""
        return self.name != "identity" and not self.needs_bit

    @property
    def output_tells_bit(self) -> bool:
        """Whether the bit can be read off the output: the activation keeps each side of its kink apart."""
        return self.needs_bit and (self.name != "leaky_relu" or self.parameters[0] >= 0)

    def is_on(self, z: Tensor) -> Tensor:
        """The bit: whether the derivative at z is 1, as a bool tensor (piecewise linear activations only)."""
        is_on = ACTIVATIONS[self.name].is_on
        assert is_on is not None
        return is_on(z, *self.parameters)

    def backward(self, gradient: Tensor, on: Tensor) -> Tensor:
        """``gradient`` times the derivative that the bits tell (piecewise linear activations only).

        Where the derivative is 0 the result is 0 even for an infinite gradient, as in torch.
        """
        off = ACTIVATIONS[self.name].slope_off(*self.parameters)
        return torch.where(on, gradient, gradient * off if off else 0.0)

    def __call__(self, z: Tensor) -> Tensor:
        """``activation(z)``, of z's shape and dtype."""
        return ACTIVATIONS[self.name].apply(z, *self.parameters)

    def in_place(self, z: Tensor) -> Tensor:
        """``activation(z)`` in the memory of z where torch can; z is lost either way."""
        kind = ACTIVATIONS[self.name]
        return (kind.in_place or kind.apply)(z, *self.parameters)

    def derivative(self, z: Tensor) -> Tensor:
        """``activation'(z)``, of z's shape and dtype; differentiable again."""
        derivative = ACTIVATIONS[self.name].derivative
        if derivative is None:
            return self.backward(torch.ones_like(z), self.is_on(z))
        return derivative(z, *self.parameters)

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
