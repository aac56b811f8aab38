"""How far running statistics are from the input's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from batchnorm.doctor.collect import collect
from batchnorm.doctor.drift import Drift, drift
from batchnorm.doctor.rule import Need


def seen(layer: nn.BatchNorm1d, batches: list[torch.Tensor]) -> Drift | None:
    evidence = collect(nn.Sequential(layer), batches=batches, needs=frozenset({Need.BATCHES}))
    return drift(evidence.layers[0], evidence.layers[0].in_training)


def test_it_is_in_running_standard_deviations_with_eps():
    layer = nn.BatchNorm1d(2, eps=0.5)
    layer.running_mean[:], layer.running_var[:] = torch.tensor([1.0, -2.0]), torch.tensor([3.5, 0.5])
    batches = [torch.randn(32, 2) for _ in range(4)]
    together = torch.cat(batches).double()
    found = seen(layer, batches)
    np.testing.assert_allclose(found.shift, (together.mean(0) - torch.tensor([1.0, -2.0])).abs() / torch.tensor([2, 1]))
    np.testing.assert_allclose(found.ratio, (together.var(0, correction=0) + 0.5) / torch.tensor([4, 1]), rtol=1e-6)


@pytest.mark.parametrize("samples", [16, 256])
def test_the_standard_errors_are_those_of_repetition(samples: int):
    torch.manual_seed(0)
    drawn, errors, ratio_errors = [], [], []
    for _ in range(25):
        found = seen(nn.BatchNorm1d(4, momentum=1e-9), [torch.randn(samples, 4) for _ in range(6)])
        drawn.append((found.shift, np.log(found.ratio)))
        errors.append(found.shift_error)
        ratio_errors.append(found.ratio_error)
    # Of |x| around 0: its root mean square.
    assert np.mean(errors) == pytest.approx(np.sqrt(np.mean([shift**2 for shift, _ in drawn])), rel=0.25)
    assert np.mean(ratio_errors) == pytest.approx(np.std([ratio for _, ratio in drawn]), rel=0.35)


def test_a_running_average_of_such_batches_has_an_error_of_its_own():
    batches = [torch.randn(16, 4) for _ in range(8)]
    slow, quick = (seen(nn.BatchNorm1d(4, momentum=momentum), batches) for momentum in (1e-9, 0.5))
    assert quick.shift_error == pytest.approx(slow.shift_error * (1 + 8 / 3) ** 0.5)


def test_of_one_batch_samples_are_counted():
    found = seen(nn.BatchNorm1d(4, momentum=None), [torch.randn(9, 4, 1000)])
    assert found.shift_error == pytest.approx(1 / 3)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nothing_is_said_of_what_is_not_finite(value: float):
    layer = nn.BatchNorm1d(2)
    layer.running_var[0] = value
    assert seen(layer, [torch.randn(8, 2)]) is None
    assert seen(nn.BatchNorm1d(2), [torch.full((8, 2), value)]) is None


def test_more_than_so_much_and_what_sampling_explains():
    found = Drift(np.array([0.5, 1.2, 3.0]), np.array([1.0, 1.0, 1.0]), 0.2, 0.1)
    assert found.beyond(0.5, 2.0) == 2
    assert found.beyond(0.7, 2.0) == 1
    wide = Drift(np.zeros(3), np.array([2.1, 1 / 4, 4.0]), 0.2, 0.1)
    assert wide.beyond(0.5, 2.0) == 2
    assert wide.typical_ratio == pytest.approx(4.0)
