from fractions import Fraction
from functools import reduce

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from batchnorm.reference import Moments, empty_moments, merge, moments, pooled_moments, welford_update
from batchnorm.reference.arrays import by_channel

SHAPES = [(7, 3), (4, 3, 5), (2, 3, 4, 5), (2, 3, 2, 3, 2), (1, 1, 1, 1)]


def exact(values):
    """Mean and biased variance in rational arithmetic: no rounding but the last."""
    numbers = [Fraction(float(value)) for value in values]
    mean = sum(numbers) / len(numbers)
    return float(mean), float(sum((number - mean) ** 2 for number in numbers) / len(numbers))


def observations(x, mask=None):
    return by_channel(np.asarray(x), mask).T  # (M, C)


@pytest.mark.parametrize("shape", SHAPES)
def test_moments_are_those_of_numpy_over_all_axes_but_the_channel(shape):
    x = np.random.default_rng(0).normal(3.0, 2.0, shape)
    axes = (0, *range(2, x.ndim))
    result = moments(x)
    assert result.count == x.size // shape[1]
    assert_allclose(result.mean, x.mean(axis=axes), rtol=1e-14)
    assert_allclose(result.variance, x.var(axis=axes), rtol=1e-13)
    if result.count > 1:
        assert_allclose(result.unbiased_variance, x.var(axis=axes, ddof=1), rtol=1e-13)


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(0, 5),
    c=st.integers(1, 3),
    spatial=st.lists(st.integers(1, 3), max_size=3),
    seed=st.integers(0, 2**16),
)
def test_masked_moments_are_those_of_the_gathered_positions(n, c, spatial, seed):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(n, c, *spatial))
    mask = generator.random((n, *spatial)) < 0.6
    gathered = np.stack([x[:, channel][mask] for channel in range(c)], axis=1)  # (M, C)
    # What stands at a masked position must not matter, even where it is no number.
    x = np.where(mask[:, np.newaxis], x, np.nan)
    masked, plain = moments(x, mask), moments(gathered)
    assert masked.count == plain.count == mask.sum()
    assert_array_equal(masked.mean, plain.mean)
    assert_array_equal(masked.m2, plain.m2)


def test_nothing_counted_gives_zeros_and_one_gives_variance_zero():
    nothing = moments(np.ones((2, 3, 2)), np.zeros((2, 2), dtype=bool))
    assert nothing.count == 0
    assert_array_equal(nothing.mean, np.zeros(3))
    assert_array_equal(nothing.variance, np.zeros(3))
    single = moments([[5.0, 7.0]])
    assert single.count == 1
    assert_array_equal(single.mean, [5.0, 7.0])
    assert_array_equal(single.variance, [0.0, 0.0])
    assert np.isnan(single.unbiased_variance).all()


def test_a_non_finite_value_is_not_hidden():
    with np.errstate(invalid="ignore"):
        result = moments([[np.nan, np.inf, 1.0], [1.0, 1.0, 2.0]])
    assert not np.isfinite(result.m2[:2]).any()
    assert_allclose(result.variance[2], 0.25)


@pytest.mark.parametrize(("mean", "spread"), [(0.0, 1.0), (1e8, 1e-3), (-1e8, 1e-6), (1e4, 1e-2)])
@pytest.mark.parametrize("how", ["two-pass", "welford", "merged"])
def test_a_large_mean_beside_a_small_spread(how, mean, spread):
    values = mean + spread * np.random.default_rng(1).normal(size=(64, 1))
    result = {
        "two-pass": lambda: moments(values),
        "welford": lambda: reduce(welford_update, values, empty_moments(1)),
        "merged": lambda: pooled_moments(moments(part) for part in np.split(values, 8)),
    }[how]()
    exact_mean, exact_variance = exact(values[:, 0])
    # Numbers near 1e8 are 1.5e-8 apart. Welford and the merge keep a mean rounded to that; the two-pass
    # method corrects for it, so it alone is right to the last digits whatever the spread.
    spacing = np.spacing(abs(mean)) / spread
    rtol = 1e-13 if how == "two-pass" else 1e-13 + 30 * spacing
    assert_allclose(result.mean, exact_mean, rtol=1e-15, atol=spread * 1e-14)
    assert_allclose(result.variance, exact_variance, rtol=rtol)
    if abs(mean) == 1e8:
        naive = np.mean(values**2) - np.mean(values) ** 2
        assert abs(naive - exact_variance) > 0.5 * exact_variance


@pytest.mark.parametrize("seed", range(6))
def test_the_mean_is_right_to_its_last_digit(seed):
    """Without the second pass it is off by one unit in the last place for some of these."""
    values = 1e8 + np.random.default_rng(seed).normal(size=(999, 1))
    assert moments(values).mean.item() == exact(values[:, 0])[0]


@settings(max_examples=30, deadline=None)
@given(count=st.integers(0, 20), seed=st.integers(0, 2**16))
def test_welford_one_at_a_time_is_the_batch_at_once(count, seed):
    x = np.random.default_rng(seed).normal(5.0, 2.0, size=(count, 3))
    streamed, at_once = reduce(welford_update, x, empty_moments(3)), moments(x)
    assert streamed.count == at_once.count
    assert_allclose(streamed.mean, at_once.mean, rtol=1e-13)
    assert_allclose(streamed.m2, at_once.m2, rtol=1e-12, atol=1e-13)


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(0, 6), min_size=1, max_size=6), seed=st.integers(0, 2**16))
def test_pooled_parts_are_the_whole_in_any_order(sizes, seed):
    generator = np.random.default_rng(seed)
    x = generator.normal(generator.normal(0, 10), 2.0, size=(sum(sizes), 2, 3))
    parts = [moments(part) for part in np.split(x, np.cumsum(sizes)[:-1])]
    whole = moments(x)
    shuffled = [parts[index] for index in generator.permutation(len(parts))]
    for order in (parts, shuffled):
        pooled = pooled_moments(order)
        assert pooled.count == whole.count
        assert_allclose(pooled.mean, whole.mean, rtol=1e-12, atol=1e-13)
        assert_allclose(pooled.m2, whole.m2, rtol=1e-11, atol=1e-12)


def test_merge_is_associative_and_commutative_within_rounding():
    generator = np.random.default_rng(2)
    a, b, c = (moments(generator.normal(m, 1.0, size=(n, 4))) for m, n in ((0, 3), (50, 8), (-7, 5)))
    for left, right in [
        (merge(merge(a, b), c), merge(a, merge(b, c))),
        (merge(a, b), merge(b, a)),
    ]:
        assert left.count == right.count
        assert_allclose(left.mean, right.mean, rtol=1e-13)
        assert_allclose(left.m2, right.m2, rtol=1e-13)


def test_the_empty_state_is_neutral():
    part = moments(np.random.default_rng(3).normal(size=(5, 2)))
    for merged in (merge(part, empty_moments(2)), merge(empty_moments(2), part)):
        assert merged.count == part.count
        assert_array_equal(merged.mean, part.mean)
        assert_array_equal(merged.m2, part.m2)
    assert merge(empty_moments(2), empty_moments(2)).count == 0


def test_pooling_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one part"):
        pooled_moments([])


def test_a_mask_of_another_shape_is_refused_with_both_shapes():
    with pytest.raises(ValueError, match=r"\(2, 3, 4\).*\(2, 4\).*\(2, 3\)"):
        moments(np.zeros((2, 3, 4)), np.ones((2, 3), dtype=bool))


def test_single_precision_input_is_averaged_in_double():
    x = np.full((1000, 1), 0.1, dtype=np.float32)
    result = moments(x)
    assert result.mean.dtype == np.float64
    assert_allclose(result.mean, float(np.float32(0.1)), rtol=1e-15)
    assert isinstance(result, Moments)


def test_observations_are_gathered_with_the_channel_in_front():
    x = np.arange(24.0).reshape(2, 3, 4)
    assert_array_equal(observations(x)[:, 1], x[:, 1].ravel())
