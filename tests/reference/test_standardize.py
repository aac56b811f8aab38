import numpy as np
from numpy.testing import assert_allclose, assert_array_equal

from batchnorm.reference import forward, moments, scale_to_unit_interval, standardize, unstandardize

X = np.random.default_rng(0).gamma(2.0, [[[1.0], [1e5]]], size=(50, 2, 3))


def test_standardised_data_has_mean_zero_and_variance_one():
    data = moments(X)
    result = moments(standardize(X, data.mean, data.variance))
    assert_allclose(result.mean, 0.0, atol=1e-13)
    assert_allclose(result.variance, 1.0, rtol=1e-12)


def test_batch_normalization_is_the_standardisation_of_the_batch():
    batch = moments(X)
    assert_allclose(standardize(X, batch.mean, batch.variance, eps=1e-3), forward(X, eps=1e-3)[0], rtol=1e-11)


def test_unstandardize_is_the_inverse():
    data = moments(X)
    for eps in (0.0, 0.1):
        y = standardize(X, data.mean, data.variance, eps)
        assert_allclose(unstandardize(y, data.mean, data.variance, eps), X, rtol=1e-12)


def test_scaled_data_fills_the_unit_interval():
    low, high = X.min(axis=(0, 2)), X.max(axis=(0, 2))
    scaled = scale_to_unit_interval(X, low, high)
    assert_array_equal(scaled.min(axis=(0, 2)), 0.0)
    assert_array_equal(scaled.max(axis=(0, 2)), 1.0)
    assert_allclose(scaled, (X - low[:, np.newaxis]) / (high - low)[:, np.newaxis], rtol=1e-15)


def test_both_forget_the_unit_of_the_feature():
    other = 1000.0 * X + 7.0
    ours, theirs = moments(X), moments(other)
    assert_allclose(
        standardize(X, ours.mean, ours.variance), standardize(other, theirs.mean, theirs.variance), atol=1e-9
    )


def test_a_constant_feature_becomes_zero_in_both():
    x = np.full((4, 1), 7.0)
    assert_array_equal(standardize(x, [7.0], [0.0]), np.zeros((4, 1)))
    assert_array_equal(scale_to_unit_interval(x, [7.0], [7.0]), np.zeros((4, 1)))
    assert_array_equal(unstandardize(np.zeros((4, 1)), [7.0], [0.0]), x)
