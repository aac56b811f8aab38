"""Each activation against torch's own module: value, derivative (at the kinks too), second derivative."""

import pytest
import torch
import torch.nn.functional as F

from batchnorm.activation import ACTIVATIONS, Activation, as_activation
from batchnorm.errors import ArgumentError

MODULES = {
    "identity": torch.nn.Identity(),
    "relu": torch.nn.ReLU(),
    "leaky_relu": torch.nn.LeakyReLU(0.2),
    "relu6": torch.nn.ReLU6(),
    "hardtanh": torch.nn.Hardtanh(-0.5, 1.5),
    "silu": torch.nn.SiLU(),
    "hardswish": torch.nn.Hardswish(),
    "gelu": torch.nn.GELU(),
    "gelu_tanh": torch.nn.GELU(approximate="tanh"),
    "sigmoid": torch.nn.Sigmoid(),
    "tanh": torch.nn.Tanh(),
    "elu": torch.nn.ELU(0.7),
}
KINKS = [-3.0, -1.0, -0.5, 0.0, -0.0, 1.0, 1.5, 3.0, 6.0]


def test_every_activation_has_its_module() -> None:
    assert set(MODULES) == set(ACTIVATIONS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_value_and_derivative(name: str, dtype: torch.dtype) -> None:
    activation = as_activation(MODULES[name])
    assert activation.name == name
    z = torch.cat(
        [
            torch.linspace(-8, 8, 1001, dtype=dtype),
            torch.tensor([*KINKS, -1e30, 1e30, -60.0, 60.0, float("nan")], dtype=dtype),
        ]
    ).requires_grad_()
    expected = MODULES[name](z)
    torch.testing.assert_close(activation(z), expected, equal_nan=True)
    slope = torch.autograd.grad(expected.sum(), z)[0] if name != "identity" else torch.ones_like(z)
    if name == "gelu_tanh":
        # torch's own derivative is NaN where z³ overflows; the limit is 0 or 1.
        z, slope = z[z.abs() != 1e30], slope[z.abs() != 1e30]
    tolerance = {"rtol": 1e-5, "atol": 5e-6} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-13}
    torch.testing.assert_close(activation.derivative(z), slope, equal_nan=True, **tolerance)
    if activation.needs_bit:
        given = torch.full_like(z, 3.0)
        torch.testing.assert_close(activation.backward(given, activation.is_on(z)), 3 * slope, equal_nan=True)


@pytest.mark.parametrize("name", [name for name in ACTIVATIONS if Activation(name).needs_value])
def test_derivative_is_differentiable(name: str) -> None:
    activation = as_activation(MODULES[name])
    z = (torch.linspace(-5, 5, 101, dtype=torch.float64) + 0.013).requires_grad_()
    second = torch.autograd.grad(activation.derivative(z).sum(), z)[0]
    first = torch.autograd.grad(MODULES[name](z).sum(), z, create_graph=True)[0]
    wanted = torch.autograd.grad(first.sum(), z)[0]
    torch.testing.assert_close(second, wanted, rtol=1e-9, atol=1e-10)


def test_names_modules_and_none_mean_the_same() -> None:
    assert as_activation("leaky_relu") == as_activation(torch.nn.LeakyReLU()) == Activation("leaky_relu")
    assert as_activation(None) == Activation("identity")
    assert hash(Activation("elu", alpha=1)) == hash(Activation("elu"))
    assert Activation("elu", alpha=2) != Activation("elu")


def test_an_infinite_gradient_stops_where_the_derivative_is_zero() -> None:
    z, gradient = torch.tensor([-1.0, 1.0]), torch.tensor([float("inf")] * 2)
    assert Activation("relu").backward(gradient, z > 0).tolist() == [0.0, float("inf")]


def test_a_parameter_is_not_rounded_through_float32() -> None:
    z = torch.full((1,), -1.0, dtype=torch.float64)
    assert float(Activation("leaky_relu", negative_slope=0.1).derivative(z)) == 0.1


def test_refusals() -> None:
    class Custom(torch.nn.ReLU):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return F.relu(input) ** 2

    with pytest.raises(ArgumentError, match="Custom"):
        as_activation(Custom())
    with pytest.raises(ArgumentError, match="relu, leaky_relu"):
        Activation("rellu")
    with pytest.raises(ArgumentError, match="negative_slope"):
        Activation("leaky_relu", slope=0.1)
