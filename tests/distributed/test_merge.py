"""The moments of several ranks, merged: what no process group is needed for."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from batchnorm import reference
from batchnorm.ops.ranks import merge_ranks


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 6), min_size=1, max_size=5),
    offset=st.sampled_from([0.0, 1.0, 1e6]),
    apart=st.sampled_from([0.0, 1.0, 100.0]),
    seed=st.integers(0, 2**16),
)
def test_merged_moments_are_those_of_all_values(sizes: list[int], offset: float, apart: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    parts = [generator.normal(offset + apart * rank, 1, (size, 3)) for rank, size in enumerate(sizes)]
    moments = [reference.moments(part) for part in parts]
    counts = torch.tensor([[float(part.count)] for part in moments], dtype=torch.float64)
    means, squares = (torch.from_numpy(np.stack(x)) for x in zip(*((m.mean, m.m2) for m in moments), strict=True))
    count, mean, var = merge_ranks(counts, means, squares)
    whole = reference.moments(np.concatenate(parts))
    assert int(count) == whole.count
    rounding = 1e-14 * (1 + offset + 5 * apart)
    np.testing.assert_allclose(mean, whole.mean, rtol=0, atol=rounding)
    np.testing.assert_allclose(var, whole.variance, rtol=1e-12, atol=rounding)


def test_one_rank_is_itself() -> None:
    count, mean, var = merge_ranks(*(torch.tensor([[x]], dtype=torch.float64) for x in (3.0, 7.0, 6.0)))
    assert (float(count), mean.tolist(), var.tolist()) == (3.0, [7.0], [2.0])
