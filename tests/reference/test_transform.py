import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from batchnorm.reference import (
    ACTIVATIONS,
    Activation,
    backward,
    backward_by_chain_rule,
    backward_evaluation,
    forward,
    forward_evaluation,
    identity_parameters,
    moments,
    scale_and_shift,
)
from reference.finite_differences import central_differences

SHAPES = {"(N, C)": (5, 2), "(N, C, L)": (3, 2, 3), "(N, C, H, W)": (2, 2, 2, 2)}


def example(shape, *, affine=True, residual=True, masked=True, seed=0):
    """Arguments of `forward`, an upstream gradient, and an evaluation's statistics."""
    generator = np.random.default_rng(seed)
    c = shape[1]
    mask = generator.random((shape[0], *shape[2:])) < 0.7
    mask.flat[:2] = True
    arguments = {
        "weight": generator.normal(1.0, 0.5, c) if affine else None,
        "bias": generator.normal(0.0, 0.5, c) if affine else None,
        "residual": generator.normal(size=shape) if residual else None,
        "mask": mask if masked else None,
    }
    statistics = {"mean": generator.normal(size=c), "variance": generator.uniform(0.5, 2.0, c)}
    return generator.normal(1.0, 2.0, shape), arguments, generator.normal(size=shape), statistics


def assert_gradients_are_those_of_finite_differences(function, x, arguments, dy, gradients):
    """`function(x, **arguments)` gives y; the loss is Σ dy·y."""
    given = {"x": x, **{name: arguments[name] for name in ("weight", "bias", "residual")}}
    for name, value in given.items():
        gradient = getattr(gradients, name)
        if value is None:
            assert gradient is None
            continue

        def loss(changed, name=name):
            named = {**arguments, name: changed}
            return float((dy * function(named.pop("x", x), **named)).sum())

        numerical = central_differences(loss, value)
        assert_allclose(gradient, numerical, rtol=1e-6, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_backward_is_the_slope_of_forward(shape, activation, masked):
    x, arguments, dy, _ = example(SHAPES[shape], masked=masked)
    arguments["activation"] = activation
    _, saved = forward(x, **arguments)
    for rule in (backward, backward_by_chain_rule):
        assert_gradients_are_those_of_finite_differences(
            lambda x, **named: forward(x, **named)[0], x, arguments, dy, rule(dy, saved)
        )


@pytest.mark.parametrize("activation", ["identity", "relu", "gelu"])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_backward_without_weight_bias_or_residual(activation, affine, residual):
    x, arguments, dy, _ = example((3, 2, 3), affine=affine, residual=residual)
    arguments["activation"] = activation
    _, saved = forward(x, **arguments)
    for rule in (backward, backward_by_chain_rule):
        assert_gradients_are_those_of_finite_differences(
            lambda x, **named: forward(x, **named)[0], x, arguments, dy, rule(dy, saved)
        )


@pytest.mark.parametrize("only", ["weight", "bias"])
def test_backward_with_one_of_weight_and_bias(only):
    x, arguments, dy, _ = example((4, 2))
    arguments["bias" if only == "weight" else "weight"] = None
    _, saved = forward(x, **arguments)
    assert_gradients_are_those_of_finite_differences(
        lambda x, **named: forward(x, **named)[0], x, arguments, dy, backward(dy, saved)
    )


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("activation", ["identity", "leaky_relu", "silu"])
def test_backward_of_evaluation_is_its_slope(activation, affine, masked):
    x, arguments, dy, statistics = example((2, 2, 3), affine=affine, masked=masked)
    arguments["activation"] = activation
    _, saved = forward_evaluation(x, **statistics, **arguments)
    assert_gradients_are_those_of_finite_differences(
        lambda x, **named: forward_evaluation(x, **statistics, **named)[0],
        x,
        arguments,
        dy,
        backward_evaluation(dy, saved),
    )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("shape", [*SHAPES.values(), (2, 2, 2, 2, 2)])
def test_forward_and_backward_are_those_of_torch(shape, affine, training):
    x, arguments, dy, statistics = example(shape, affine=affine, residual=False, masked=False)
    names = ("weight", "bias") if affine else ()
    tensors = {name: torch.tensor(arguments[name], requires_grad=True) for name in names}
    torch_x = torch.tensor(x, requires_grad=True)
    torch_y = torch.nn.functional.batch_norm(
        torch_x,
        torch.tensor(statistics["mean"]),
        torch.tensor(statistics["variance"]),
        training=training,
        eps=1e-3,
        **tensors,
    )
    torch_y.backward(torch.tensor(dy))
    if training:
        y, saved = forward(x, **arguments, eps=1e-3)
        gradients = backward(dy, saved)
    else:
        y, saved = forward_evaluation(x, **statistics, **arguments, eps=1e-3)
        gradients = backward_evaluation(dy, saved)
    assert_allclose(y, torch_y.detach().numpy(), rtol=1e-12, atol=1e-13)
    assert_allclose(gradients.x, torch_x.grad.numpy(), rtol=1e-11, atol=1e-12)
    for name in names:
        assert_allclose(getattr(gradients, name), tensors[name].grad.numpy(), rtol=1e-11, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 4),
    spatial=st.lists(st.integers(1, 3), max_size=2),
    seed=st.integers(0, 2**16),
    activation=st.sampled_from(ACTIVATIONS),
)
def test_masked_is_the_transform_of_the_gathered_positions(n, spatial, seed, activation):
    shape = (n, 2, *spatial)
    generator = np.random.default_rng(seed)
    mask = generator.random((n, *spatial)) < 0.6
    x, arguments, dy, _ = example(shape, masked=False, seed=seed)

    def gathered(values):  # (M, C)
        return np.stack([values[:, channel][mask] for channel in range(2)], axis=1)

    # What stands at masked positions must reach nothing: neither output nor gradient, nor a sum.
    spoiled = {name: np.where(mask[:, np.newaxis], v, np.nan) for name, v in [("x", x), ("dy", dy)]}
    with np.errstate(invalid="ignore"):
        y, saved = forward(spoiled["x"], **{**arguments, "mask": mask}, activation=activation)
        gradients = backward(spoiled["dy"], saved)
        stepwise = backward_by_chain_rule(spoiled["dy"], saved)
    plain_y, plain_saved = forward(
        gathered(x), **{**arguments, "residual": gathered(arguments["residual"])}, activation=activation
    )
    plain = backward(gathered(dy), plain_saved)
    assert_allclose(gathered(y), plain_y, rtol=1e-13, atol=1e-14)
    for result in (gradients, stepwise):
        assert_allclose(gathered(result.x), plain.x, rtol=1e-9, atol=1e-11)
        assert_allclose(gathered(result.residual), plain.residual, rtol=1e-13, atol=1e-14)
        assert_allclose(result.weight, plain.weight, rtol=1e-11, atol=1e-12)
        assert_allclose(result.bias, plain.bias, rtol=1e-11, atol=1e-12)
    for values in (y, gradients.x, gradients.residual, stepwise.x):
        outside = np.broadcast_to(~mask[:, np.newaxis], values.shape)
        assert_array_equal(values[outside], 0.0)


@pytest.mark.parametrize("valid", [0, 1])
def test_one_valid_position_gives_the_activation_of_the_bias_and_none_gives_zeros(valid):
    x, arguments, dy, _ = example((2, 2, 3))
    mask = np.zeros((2, 3), dtype=bool)
    mask[0, 1] = bool(valid)
    arguments["mask"] = mask
    y, saved = forward(x, **arguments, activation="sigmoid")
    expected = np.zeros_like(x)
    if valid:
        z = arguments["bias"] + arguments["residual"][0, :, 1]
        expected[0, :, 1] = Activation("sigmoid").value(z)
    else:
        assert_array_equal(saved.mean, [0.0, 0.0])
    assert_allclose(y, expected, rtol=1e-14)
    assert saved.count == valid
    for rule in (backward, backward_by_chain_rule):
        with np.errstate(all="raise"):  # a division by a count of 0 would be masked away, but not before
            gradients = rule(dy, saved)
        assert_allclose(gradients.x, np.zeros_like(x), atol=1e-12)
        assert_allclose(gradients.weight, [0.0, 0.0], atol=1e-15)


def test_output_has_mean_beta_and_standard_deviation_gamma():
    x, arguments, _, _ = example((50, 2, 4), residual=False, masked=False)
    y, _ = forward(x, **arguments, eps=0.0)
    assert_allclose(moments(y).mean, arguments["bias"], rtol=1e-12)
    assert_allclose(np.sqrt(moments(y).variance), np.abs(arguments["weight"]), rtol=1e-12)


def test_gradient_of_the_input_is_orthogonal_to_ones_and_to_the_standardized_input():
    x, arguments, dy, _ = example((6, 2, 3), residual=False, masked=False)
    _, saved = forward(x, **arguments, eps=0.0)
    dx = backward(dy, saved).x
    assert_allclose(dx.sum(axis=(0, 2)), 0.0, atol=1e-13)
    assert_allclose((dx * x).sum(axis=(0, 2)), 0.0, atol=1e-12)


@pytest.mark.parametrize("eps", [0.0, 1e-5, 0.5])
def test_the_identity_can_be_recovered(eps):
    x = np.random.default_rng(1).normal(3.0, 2.0, (4, 3, 5))
    weight, bias = identity_parameters(moments(x), eps)
    assert_allclose(forward(x, weight, bias, eps=eps)[0], x, rtol=1e-13)


def test_evaluation_is_a_scale_and_a_shift():
    x, arguments, _, statistics = example((3, 2, 4), residual=False, masked=False)
    scale, shift = scale_and_shift(**statistics, weight=arguments["weight"], bias=arguments["bias"], eps=0.1)
    y, _ = forward_evaluation(x, **statistics, **arguments, eps=0.1)
    assert_allclose(x * scale[:, np.newaxis] + shift[:, np.newaxis], y, rtol=1e-12)
    plain_scale, plain_shift = scale_and_shift(**statistics, eps=0.1)
    y, _ = forward_evaluation(x, **statistics, eps=0.1)
    assert_allclose(x * plain_scale[:, np.newaxis] + plain_shift[:, np.newaxis], y, rtol=1e-12)


def test_eps_stands_inside_the_root():
    x = np.array([[0.0], [0.2]])  # variance 0.01
    y, saved = forward(x, eps=0.03)
    assert_allclose(saved.invstd, 5.0)  # 1/√(0.01 + 0.03)
    assert_allclose(y, [[-0.5], [0.5]])


def test_two_samples_keep_only_their_order():
    x = np.random.default_rng(2).normal(size=(2, 4))
    y, _ = forward(x, eps=0.0)
    assert_allclose(y, np.sign(x - x.mean(axis=0)), rtol=1e-12)


def test_arguments_are_left_as_they_were():
    x, arguments, dy, _ = example((3, 2, 3))
    before = {name: np.copy(value) for name, value in [("x", x), ("dy", dy), *arguments.items()]}
    _, saved = forward(x, **arguments, activation="relu")
    backward(dy, saved)
    for name, value in [("x", x), ("dy", dy), *arguments.items()]:
        assert_array_equal(value, before[name], err_msg=name)


def test_an_empty_batch_gives_an_empty_output():
    y, saved = forward(np.zeros((0, 3, 2)), weight=np.ones(3))
    assert y.shape == (0, 3, 2)
    gradients = backward(np.zeros((0, 3, 2)), saved)
    assert gradients.x.shape == (0, 3, 2)
    assert_array_equal(gradients.weight, np.zeros(3))
