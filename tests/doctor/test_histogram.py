"""Counts of values."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from batchnorm.doctor.histogram import Histogram


def test_every_value_is_counted_once() -> None:
    values = torch.cat([3 * torch.randn(1000), torch.tensor([torch.nan, torch.inf, -torch.inf, 2.0, -2.0])])
    histogram = Histogram(-2.0, 2.0, 8)
    for part in values.split(100):
        histogram.add(part)
    finite = values[values.isfinite()].numpy()
    inside = np.histogram(finite, bins=8, range=(-2, 2))[0]
    assert histogram.counts.tolist() == inside.tolist()
    assert histogram.below == int((values < -2).sum())
    assert histogram.above == int((values > 2).sum())
    assert histogram.other == 1
    assert histogram.total == len(values) - 1
    assert histogram.edges.tolist() == [-2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_dtypes(dtype: torch.dtype) -> None:
    histogram = Histogram(0.0, 4.0, 4)
    histogram.add(torch.tensor([[0, 1], [3, 9]]).to(dtype))
    assert (histogram.counts.tolist(), histogram.above) == ([1, 1, 0, 1], 1)


def test_values_that_float32_does_not_tell_apart() -> None:
    histogram = Histogram(1e9, 1e9 + 4, 4)
    histogram.add(torch.tensor([1e9 + 0.5, 1e9 + 1.5, 1e9 + 3.5], dtype=torch.float64))
    assert histogram.counts.tolist() == [1, 1, 0, 1]


def test_shares() -> None:
    histogram = Histogram(0.0, 4.0, 4)
    assert histogram.share(0, 4) == 0
    histogram.add(torch.tensor([-1.0, 0.5, 1.5, 1.5, 2.5, 7.0, 8.0, 9.0]))
    assert histogram.share(-np.inf, np.inf) == 1
    assert histogram.share(0, 4) == 4 / 8
    assert histogram.share(1.5, 2) == 1 / 8  # half of a bin of two
    assert histogram.share(-np.inf, 1) == 2 / 8
    assert histogram.share(2, np.inf) == 4 / 8
    assert histogram.share(3, 4) == 0


def test_nothing_is_added() -> None:
    histogram = Histogram(0.0, 1.0, 2)
    histogram.add(torch.zeros(0))
    histogram.add(torch.tensor([torch.nan]))
    assert (histogram.total, histogram.other) == (0, 1)
    assert histogram.share(0, 1) == 0
