"""The activations that fuse with the norm: value and derivative, with torch's choices at the kinks.

A kink has no derivative; what a network uses there is a convention, and two kernels agree only if they choose
alike. The comparisons below are written so that NaN falls where it does in torch.

Every function here works element by element: z has any shape, and the result has the same.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .arrays import Array, double

_erf: Callable[[Array], Array] = np.vectorize(math.erf, otypes=[np.float64])


def identity(z: Array) -> Array:
    """The input as it is."""
    return z


def identity_derivative(z: Array) -> Array:
    """1 everywhere."""
    return np.ones_like(z)


def relu(z: Array) -> Array:
    """The larger of z and 0."""
    return np.maximum(z, 0.0)


def relu_derivative(z: Array) -> Array:
    """1 above 0, else 0; at the kink 0."""
    return np.where(z <= 0, 0.0, 1.0)


def leaky_relu(z: Array, negative_slope: float = 0.01) -> Array:
    """Above 0 z, else negative_slope·z."""
    return np.where(z > 0, z, negative_slope * z)


def leaky_relu_derivative(z: Array, negative_slope: float = 0.01) -> Array:
    """1 above 0, else negative_slope; at the kink negative_slope."""
    return np.where(z > 0, 1.0, negative_slope)


def hardtanh(z: Array, min_val: float = -1.0, max_val: float = 1.0) -> Array:
    """The input, held between min_val and max_val."""
    return np.clip(z, min_val, max_val)


def hardtanh_derivative(z: Array, min_val: float = -1.0, max_val: float = 1.0) -> Array:
    """1 between the bounds, else 0; at both bounds 0."""
    return np.where((z <= min_val) | (z >= max_val), 0.0, 1.0)


def relu6(z: Array) -> Array:
    """The input, held between 0 and 6."""
    return hardtanh(z, 0.0, 6.0)


def relu6_derivative(z: Array) -> Array:
    """1 between 0 and 6, else 0; at both bounds 0."""
    return hardtanh_derivative(z, 0.0, 6.0)


def sigmoid(z: Array) -> Array:
    """1/(1 + e⁻ᶻ), by whichever of two equal forms does not overflow."""
    decay = np.exp(-np.abs(z))  # in (0, 1]
    return np.where(z >= 0, 1.0, decay) / (1.0 + decay)


def sigmoid_derivative(z: Array) -> Array:
    """sigmoid(z)·(1 − sigmoid(z))."""
    # sigmoid(−z) is 1 − sigmoid(z) without its cancellation.
    return sigmoid(z) * sigmoid(-z)


def tanh(z: Array) -> Array:
    """The hyperbolic tangent."""
    return np.tanh(z)


def tanh_derivative(z: Array) -> Array:
    """1 − tanh(z)²."""
    return 1.0 - np.square(np.tanh(z))


def silu(z: Array) -> Array:
    """The input times its sigmoid."""
    return z * sigmoid(z)


def silu_derivative(z: Array) -> Array:
    """With s = sigmoid(z): s + z·s·(1 − s)."""
    return sigmoid(z) + z * sigmoid_derivative(z)


def hardswish(z: Array) -> Array:
    """The input times relu6(z + 3)/6."""
    return z * relu6(z + 3.0) / 6.0


def hardswish_derivative(z: Array) -> Array:
    """0 up to −3, z/3 + 1/2 between −3 and 3, 1 from 3 on."""
    return np.where(z <= -3, 0.0, np.where(z < 3, z / 3.0 + 0.5, 1.0))


def gelu(z: Array, approximate: str = "none") -> Array:
    """The input times Φ(z), the normal distribution function; "tanh" takes a formula close to Φ."""
    if approximate == "tanh":
        return 0.5 * z * (1.0 + np.tanh(_gelu_inner(z)))
    return 0.5 * z * (1.0 + _erf(z / math.sqrt(2.0)))


def gelu_derivative(z: Array, approximate: str = "none") -> Array:
    """Φ(z) + z·φ(z), with φ the normal density; for "tanh" the derivative of that formula."""
    if approximate == "tanh":
        t = np.tanh(_gelu_inner(z))
        inner_derivative = math.sqrt(2.0 / math.pi) * (1.0 + 3.0 * 0.044715 * np.square(z))
        return 0.5 * (1.0 + t) + 0.5 * z * (1.0 - np.square(t)) * inner_derivative
    distribution = 0.5 * (1.0 + _erf(z / math.sqrt(2.0)))
    density = np.exp(-0.5 * np.square(z)) / math.sqrt(2.0 * math.pi)
    return distribution + z * density


def _gelu_inner(z: Array) -> Array:
    return math.sqrt(2.0 / math.pi) * (z + 0.044715 * z * z * z)


def elu(z: Array, alpha: float = 1.0) -> Array:
    """Above 0 z, else alpha·(eᶻ − 1)."""
    # The exponential is taken of what is at most 0 only: above, it could overflow, and is not used.
    return np.where(z > 0, z, alpha * np.expm1(np.minimum(z, 0.0)))


def elu_derivative(z: Array, alpha: float = 1.0) -> Array:
    """1 above 0, else alpha·eᶻ; at the kink alpha."""
    return np.where(z <= 0, alpha * np.exp(np.minimum(z, 0.0)), 1.0)


_FUNCTIONS: dict[str, tuple[Callable[..., Array], Callable[..., Array]]] = {
    "identity": (identity, identity_derivative),
    "relu": (relu, relu_derivative),
    "leaky_relu": (leaky_relu, leaky_relu_derivative),
    "relu6": (relu6, relu6_derivative),
    "hardtanh": (hardtanh, hardtanh_derivative),
    "silu": (silu, silu_derivative),
    "hardswish": (hardswish, hardswish_derivative),
    "gelu": (gelu, gelu_derivative),
    "sigmoid": (sigmoid, sigmoid_derivative),
    "tanh": (tanh, tanh_derivative),
    "elu": (elu, elu_derivative),
}

ACTIVATIONS: tuple[str, ...] = tuple(_FUNCTIONS)


@dataclass(frozen=True, init=False)
class Activation:
    """An activation by name, with its parameters under torch's names.

    Args:
        name: One of `ACTIVATIONS`.
        parameters: negative_slope of leaky_relu; min_val and max_val of hardtanh; approximate ("none" or
            "tanh") of gelu; alpha of elu.

    Example:
        >>> Activation("leaky_relu", negative_slope=0.1).value([-2.0, 3.0])
        array([-0.2,  3. ])
        >>> Activation("relu").derivative([-2.0, 0.0, 3.0])
        array([0., 0., 1.])
    """

    name: str
    parameters: dict[str, Any]

    def __init__(self, name: str, **parameters: Any) -> None:
        if name not in _FUNCTIONS:
            raise ValueError(f"unknown activation {name!r}; known are {', '.join(ACTIVATIONS)}")
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "parameters", parameters)
        self.value(np.zeros(1))  # an unknown parameter is refused here, not in the middle of a computation

    def value(self, z: npt.ArrayLike) -> Array:
        """activation(z), of the shape of z."""
        return _FUNCTIONS[self.name][0](double(z), **self.parameters)

    def derivative(self, z: npt.ArrayLike) -> Array:
        """activation'(z), of the shape of z."""
        return _FUNCTIONS[self.name][1](double(z), **self.parameters)


def as_activation(activation: str | Activation) -> Activation:
    """Give an `Activation` for a name, and an `Activation` as it is."""
    return Activation(activation) if isinstance(activation, str) else activation
