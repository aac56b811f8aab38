import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from batchnorm.reference import (
    Moments,
    batch_weights,
    cumulative_momentum,
    keras_update,
    moments,
    momentum_from_keras,
    momentum_to_keras,
    update_running,
)


@pytest.mark.parametrize("momentum", [0.1, 0.7, 1.0, 0.0, None])
def test_running_statistics_are_those_of_torch(momentum):
    layer = torch.nn.BatchNorm1d(3, momentum=momentum, dtype=torch.float64)
    mean, var = np.zeros(3), np.ones(3)
    generator = np.random.default_rng(0)
    for step in range(1, 5):
        x = generator.normal(2.0, 3.0, size=(4, 3, 2))
        layer(torch.tensor(x))
        weight = cumulative_momentum(step) if momentum is None else momentum
        mean, var = update_running(mean, var, moments(x), weight)
        assert_allclose(mean, layer.running_mean.numpy(), rtol=1e-13, atol=1e-15)
        assert_allclose(var, layer.running_var.numpy(), rtol=1e-13)


def test_the_buffer_holds_the_unbiased_variance():
    x = np.array([[0.0], [2.0]])  # biased variance 1, unbiased 2
    _, var = update_running([0.0], [1.0], moments(x), momentum=1.0)
    assert_allclose(var, [2.0])


def test_the_cumulative_average_is_the_plain_average():
    generator = np.random.default_rng(1)
    batches = [moments(generator.normal(size=(5, 2))) for _ in range(7)]
    mean, var = np.full(2, 99.0), np.full(2, 99.0)  # forgotten at the first batch
    for n, batch in enumerate(batches, start=1):
        mean, var = update_running(mean, var, batch, cumulative_momentum(n))
    assert_allclose(mean, np.mean([batch.mean for batch in batches], axis=0), rtol=1e-13)
    assert_allclose(var, np.mean([batch.unbiased_variance for batch in batches], axis=0), rtol=1e-13)


def test_keras_counts_its_momentum_from_the_other_end():
    batch = moments(np.random.default_rng(2).normal(size=(6, 2)))
    mean, _ = update_running([0.5, 1.5], [1.0, 1.0], batch, momentum_from_keras(0.99))
    assert_allclose(mean, keras_update([0.5, 1.5], batch.mean, 0.99), rtol=1e-14)
    assert_allclose(momentum_to_keras(momentum_from_keras(0.9)), 0.9, rtol=1e-15)
    assert_allclose(keras_update([1.0], [3.0], 0.75), [1.5])


@pytest.mark.parametrize("num_batches", [1, 3, 20])
@pytest.mark.parametrize("momentum", [0.1, 0.5, 1.0])
def test_the_weight_of_each_batch_in_the_average(momentum, num_batches):
    generator = np.random.default_rng(3)
    batches = [moments(generator.normal(size=(4, 2))) for _ in range(num_batches)]
    start = np.array([5.0, -5.0])
    mean, var = start, np.abs(start)
    for batch in batches:
        mean, var = update_running(mean, var, batch, momentum)
    of_start, of_batches = batch_weights(num_batches, momentum)
    assert_allclose(of_start + of_batches.sum(), 1.0, rtol=1e-14)
    assert_allclose(mean, of_start * start + of_batches @ [batch.mean for batch in batches], rtol=1e-12)
    variances = [batch.unbiased_variance for batch in batches]
    assert_allclose(var, of_start * np.abs(start) + of_batches @ variances, rtol=1e-12)


@pytest.mark.parametrize(
    "batch",
    [
        moments([[7.0, 8.0]]),
        moments(np.zeros((0, 2))),
        Moments(4, np.array([1.0, np.nan]), np.ones(2)),
        Moments(4, np.ones(2), np.array([np.inf, 1.0])),
    ],
    ids=["one observation", "none", "a mean that is not finite", "a variance that is not finite"],
)
def test_what_moves_nothing(batch):
    mean, var = update_running([1.0, 2.0], [3.0, 4.0], batch)
    assert_array_equal(mean, [1.0, 2.0])
    assert_array_equal(var, [3.0, 4.0])


def test_the_first_batch_is_number_one():
    with pytest.raises(ValueError, match="number 1"):
        cumulative_momentum(0)
