import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from batchnorm.reference import (
    backward,
    forward,
    forward_evaluation,
    moments,
    renorm_backward,
    renorm_corrections,
    renorm_forward,
)
from reference.finite_differences import central_differences


def example(*, masked=False, affine=True, seed=0):
    generator = np.random.default_rng(seed)
    shape = (3, 2, 3)
    mask = generator.random((3, 3)) < 0.7 if masked else None
    arguments = {
        "weight": generator.normal(1.0, 0.5, 2) if affine else None,
        "bias": generator.normal(0.0, 0.5, 2) if affine else None,
        "residual": generator.normal(size=shape),
        "mask": mask,
    }
    return generator.normal(1.0, 2.0, shape), arguments, generator.normal(size=shape)


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_without_correction_it_is_the_plain_transform(masked):
    x, arguments, dy = example(masked=masked)
    y, kept = renorm_forward(x, np.ones(2), np.zeros(2), **arguments, activation="gelu")
    plain_y, saved = forward(x, **arguments, activation="gelu")
    assert_allclose(y, plain_y, rtol=1e-14)
    for ours, plain in zip(renorm_backward(dy, kept), backward(dy, saved), strict=True):
        assert_allclose(ours, plain, rtol=1e-12, atol=1e-14)


def test_bounds_of_one_and_zero_switch_the_correction_off():
    batch = moments(np.random.default_rng(1).normal(5.0, 4.0, (6, 2)))
    r, d = renorm_corrections(batch, [0.0, 0.0], [1.0, 1.0], r_max=1.0, d_max=0.0)
    assert_array_equal(r, [1.0, 1.0])
    assert_array_equal(d, [0.0, 0.0])


def test_without_clipping_training_computes_what_evaluation_does():
    x, arguments, _ = example()
    running_mean, running_var = np.array([0.3, -0.2]), np.array([2.0, 0.7])
    r, d = renorm_corrections(moments(x), running_mean, running_var, r_max=np.inf, d_max=np.inf)
    y, _ = renorm_forward(x, r, d, **arguments, activation="relu")
    expected, _ = forward_evaluation(x, running_mean, running_var, **arguments, activation="relu")
    assert_allclose(y, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("mean", "std", "expected_r", "expected_d"),
    [(0.0, 1.0, 1.0, 0.0), (100.0, 50.0, 3.0, 5.0), (-100.0, 0.01, 1 / 3, -5.0), (2.0, 2.0, 2.0, 2.0)],
)
def test_corrections_are_clipped_at_both_ends(mean, std, expected_r, expected_d):
    x = np.array([[mean - std], [mean + std]])
    r, d = renorm_corrections(moments(x), [0.0], [1.0], r_max=3.0, d_max=5.0, eps=0.0)
    assert_allclose(r, [expected_r], rtol=1e-12)
    assert_allclose(d, [expected_d], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("activation", ["identity", "relu", "sigmoid"])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_backward_is_the_slope_with_both_corrections_held(masked, affine, activation):
    x, arguments, dy = example(masked=masked, affine=affine)
    r, d = np.array([1.7, 0.6]), np.array([0.4, -1.2])
    _, kept = renorm_forward(x, r, d, **arguments, activation=activation)
    gradients = renorm_backward(dy, kept)
    for name, value in [("x", x), *((name, arguments[name]) for name in ("weight", "bias", "residual"))]:
        gradient = getattr(gradients, name)
        if value is None:
            assert gradient is None
            continue

        def loss(changed, name=name):
            named = {"x": x, **arguments, name: changed}
            return float((dy * renorm_forward(r=r, d=d, **named, activation=activation)[0]).sum())

        assert_allclose(gradient, central_differences(loss, value), rtol=1e-6, atol=1e-7, err_msg=name)


def test_masked_positions_give_zero_and_reach_nothing():
    x, arguments, dy = example(masked=True)
    outside = np.broadcast_to(~arguments["mask"][:, np.newaxis], x.shape)
    assert outside.any()
    r, d = np.array([1.7, 0.6]), np.array([0.4, -1.2])
    clean, kept_clean = renorm_forward(x, r, d, **arguments)
    with np.errstate(invalid="ignore"):
        y, kept = renorm_forward(np.where(outside, np.nan, x), r, d, **arguments)
        gradients = renorm_backward(np.where(outside, np.nan, dy), kept)
    assert_array_equal(y, clean)
    assert_array_equal(y[outside], 0.0)
    for ours, expected in zip(gradients, renorm_backward(dy, kept_clean), strict=True):
        assert_array_equal(ours, expected)
    assert_array_equal(gradients.x[outside], 0.0)
