from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from batchnorm.reference import (
    average_of_batches,
    law_of_total_variance,
    moments,
    pooled_moments,
    variance_between_means,
)


def batches_of(sizes, seed, spread=1.0, offset=0.0):
    """Batches whose means differ, as those of single classes or domains do."""
    generator = np.random.default_rng(seed)
    return [generator.normal(offset + generator.normal(0, spread), 1.0, (size, 2, 3)) for size in sizes]


def statistics(batches):
    parts = [moments(batch) for batch in batches]
    return np.stack([part.mean for part in parts]), np.stack([part.variance for part in parts])


@settings(max_examples=30, deadline=None)
@given(num_batches=st.integers(1, 8), size=st.integers(1, 6), seed=st.integers(0, 2**16))
def test_law_of_total_variance_is_the_pooled_truth_for_equal_batches(num_batches, size, seed):
    batches = batches_of([size] * num_batches, seed)
    mean, variance = law_of_total_variance(*statistics(batches))
    truth = moments(np.concatenate(batches))
    assert_allclose(mean, truth.mean, rtol=1e-12, atol=1e-13)
    assert_allclose(variance, truth.variance, rtol=1e-12)


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6), seed=st.integers(0, 2**16))
def test_law_of_total_variance_is_the_pooled_truth_for_unequal_batches_with_counts(sizes, seed):
    batches = batches_of(sizes, seed)
    parts = [moments(batch) for batch in batches]
    mean, variance = law_of_total_variance(*statistics(batches), counts=[part.count for part in parts])
    for truth in (moments(np.concatenate(batches)), pooled_moments(parts)):
        assert_allclose(mean, truth.mean, rtol=1e-12, atol=1e-13)
        assert_allclose(variance, truth.variance, rtol=1e-12)


def test_law_of_total_variance_is_the_formula_of_wu_and_johnson():
    means, variances = statistics(batches_of([4] * 5, seed=1))
    _, variance = law_of_total_variance(means, variances)
    assert_allclose(variance, (means**2 + variances).mean(axis=0) - means.mean(axis=0) ** 2, rtol=1e-12)


def test_law_of_total_variance_does_not_cancel_at_a_large_mean():
    batches = batches_of([8] * 4, seed=2, offset=1e8)
    means, variances = statistics(batches)
    _, variance = law_of_total_variance(means, variances)
    assert_allclose(variance, moments(np.concatenate(batches)).variance, rtol=1e-6)
    cancelled = (means**2 + variances).mean(axis=0) - means.mean(axis=0) ** 2
    assert (np.abs(cancelled - variance) > 0.1 * variance).any()


@settings(max_examples=30, deadline=None)
@given(num_batches=st.integers(1, 8), size=st.integers(2, 6), seed=st.integers(0, 2**16))
def test_algorithm_2_lacks_exactly_the_variance_between_batch_means(num_batches, size, seed):
    batches = batches_of([size] * num_batches, seed)
    means, variances = statistics(batches)
    m = batches[0].size // 2  # values a channel in one batch
    mean, variance = average_of_batches(means, variances, m)
    truth = moments(np.concatenate(batches))
    assert_allclose(mean, truth.mean, rtol=1e-12, atol=1e-13)
    # pooled σ² = (m − 1)/m · Var_Algorithm2 + Var_B[μ_B]
    assert_allclose(truth.variance, (m - 1) / m * variance + variance_between_means(means), rtol=1e-12)


@pytest.mark.parametrize("batch_size", [2, 3])
def test_algorithm_2_is_unbiased_for_independent_draws(batch_size):
    """Every batch that can be drawn, once: the expectation itself, not an estimate of it."""
    population = np.array([0.0, 1.0, 5.0, 10.0])
    batches = [np.array(draw)[:, np.newaxis] for draw in product(population, repeat=batch_size)]
    means, variances = statistics(batches)
    mean, variance = average_of_batches(means, variances, batch_size)
    assert_allclose(mean, population.mean())
    assert_allclose(variance, population.var(), rtol=1e-13)


@pytest.mark.parametrize("batch_size", [2, 3])
def test_algorithm_2_falls_short_where_the_pixels_of_an_image_agree(batch_size):
    """Images of one grey each: a batch holds batch_size independent values, and counts them as m of them."""
    population, pixels = np.array([0.0, 1.0, 5.0, 10.0]), 100
    batches = [
        np.repeat(np.array(draw)[:, np.newaxis, np.newaxis], pixels, axis=2)
        for draw in product(population, repeat=batch_size)
    ]
    means, variances = statistics(batches)
    m = batch_size * pixels
    _, variance = average_of_batches(means, variances, m)
    shortfall = (batch_size - 1) / batch_size * m / (m - 1)
    assert_allclose(variance, shortfall * population.var(), rtol=1e-12)
    _, total = law_of_total_variance(means, variances)
    assert_allclose(total, population.var(), rtol=1e-12)


def test_batches_of_one_value_have_no_variance_to_average():
    with pytest.raises(ValueError, match="batch_size is 1"):
        average_of_batches([[0.0]], [[0.0]], 1)
