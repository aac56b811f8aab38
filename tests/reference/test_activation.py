import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.testing import assert_allclose

from batchnorm.reference import ACTIVATIONS, Activation
from reference.finite_differences import central_differences

CASES = {
    "identity": (Activation("identity"), lambda z: z * 1.0),
    "relu": (Activation("relu"), F.relu),
    "leaky_relu": (Activation("leaky_relu"), F.leaky_relu),
    "leaky_relu, slope 0.3": (Activation("leaky_relu", negative_slope=0.3), lambda z: F.leaky_relu(z, 0.3)),
    "relu6": (Activation("relu6"), F.relu6),
    "hardtanh": (Activation("hardtanh"), F.hardtanh),
    "hardtanh, -2 to 0.5": (
        Activation("hardtanh", min_val=-2.0, max_val=0.5),
        lambda z: F.hardtanh(z, -2.0, 0.5),
    ),
    "silu": (Activation("silu"), F.silu),
    "hardswish": (Activation("hardswish"), F.hardswish),
    "gelu": (Activation("gelu"), F.gelu),
    "gelu, tanh": (Activation("gelu", approximate="tanh"), lambda z: F.gelu(z, approximate="tanh")),
    "sigmoid": (Activation("sigmoid"), torch.sigmoid),
    "tanh": (Activation("tanh"), torch.tanh),
    "elu": (Activation("elu"), F.elu),
    "elu, alpha 1.7": (Activation("elu", alpha=1.7), lambda z: F.elu(z, 1.7)),
}

KINKS = [-3.0, -2.0, -1.0, -0.0, 0.0, 0.5, 1.0, 3.0, 6.0]
BESIDE_KINKS = [kink + side for kink in KINKS for side in (-1e-9, 1e-9)]
FAR = [-800.0, -40.0, 40.0, 800.0]
NOT_FINITE = [-np.inf, np.inf, np.nan]
SMOOTH = np.random.default_rng(0).normal(0.0, 3.0, 50).tolist()


def torch_value_and_derivative(function, points):
    z = torch.tensor(points, dtype=torch.float64, requires_grad=True)
    y = function(z)
    y.backward(torch.ones_like(y))
    return y.detach().numpy(), z.grad.numpy()


def test_every_activation_is_compared():
    assert {activation.name for activation, _ in CASES.values()} == set(ACTIVATIONS)


@pytest.mark.parametrize("points", [KINKS, BESIDE_KINKS, FAR, NOT_FINITE, SMOOTH])
@pytest.mark.parametrize("case", CASES)
def test_value_and_derivative_are_those_of_torch(case, points):
    activation, function = CASES[case]
    value, derivative = torch_value_and_derivative(function, points)
    with np.errstate(invalid="ignore"):
        assert_allclose(activation.value(points), value, rtol=1e-13, atol=1e-15)
        # At −800 the exact derivative of silu and gelu underflows; the rest agrees far below 1e-14.
        assert_allclose(activation.derivative(points), derivative, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("case", CASES)
def test_derivative_is_the_slope_of_the_value(case):
    activation, _ = CASES[case]
    points = np.array([-6.5, -2.5, -1.5, -0.7, -0.2, 0.2, 0.7, 1.5, 2.5, 4.5, 6.5])
    slopes = central_differences(lambda z: activation.value(z).sum(), points)
    assert_allclose(activation.derivative(points), slopes, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    ("activation", "point", "derivative"),
    [
        (Activation("relu"), 0.0, 0.0),
        (Activation("leaky_relu", negative_slope=0.2), 0.0, 0.2),
        (Activation("hardtanh"), -1.0, 0.0),
        (Activation("hardtanh"), 1.0, 0.0),
        (Activation("relu6"), 0.0, 0.0),
        (Activation("relu6"), 6.0, 0.0),
        (Activation("hardswish"), -3.0, 0.0),
        (Activation("hardswish"), 3.0, 1.0),
        (Activation("elu", alpha=1.5), 0.0, 1.5),
    ],
)
def test_the_choice_at_each_kink_is_written_down(activation, point, derivative):
    assert activation.derivative([point]).item() == derivative


def test_nothing_overflows():
    with np.errstate(over="raise"):
        for activation, _ in CASES.values():
            activation.value(FAR)
            activation.derivative(FAR)


def test_an_unknown_name_and_an_unknown_parameter_are_refused():
    with pytest.raises(ValueError, match="swish"):
        Activation("swish")
    with pytest.raises(TypeError, match="slope"):
        Activation("relu", slope=0.1)
