"""Count, mean and variance: of a batch at once, of a stream one observation at a time, of parts merged.

The state throughout is (count, mean, M2), with M2 = Σ (x − mean)² the sum of squared deviations. It merges
without ever forming E[x²] − E[x]², whose two terms cancel where the mean is large beside the spread.

Sources:
    Welford, "Note on a method for calculating corrected sums of squares and products", Technometrics (1962).
    Chan, Golub & LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances",
    Stanford report STAN-CS-79-773 (1979): the merge.
    Chan, Golub & LeVeque, "Algorithms for computing the sample variance: analysis and recommendations",
    The American Statistician 37 (1983): the corrected two-pass method.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .arrays import Array, by_channel, checked_mask, double


@dataclass(frozen=True, eq=False)
class Moments:
    """Per-channel statistics of `count` observations.

    The count is one number because every channel has the same valid positions.
    """

    count: int
    mean: Array  # (C,)
    m2: Array  # (C,)  Σ (x − mean)²

    @property
    def variance(self) -> Array:
        """The biased variance M2 / count, (C,): the one that normalises. 0 where nothing was counted."""
        return self.m2 / max(self.count, 1)  # (C,)

    @property
    def unbiased_variance(self) -> Array:
        """The unbiased variance M2 / (count − 1), (C,): the one that goes into the running buffer.

        NaN where fewer than two observations were counted: they say nothing about spread.
        """
        if self.count < 2:
            return np.full_like(self.m2, np.nan)  # (C,)
        return self.m2 / (self.count - 1)  # (C,)


def empty_moments(num_features: int) -> Moments:
    """Give the state before the first observation: the neutral element of `merge`.

    Example:
        >>> empty_moments(2)
        Moments(count=0, mean=array([0., 0.]), m2=array([0., 0.]))
    """
    return Moments(0, np.zeros(num_features), np.zeros(num_features))


def moments(x: npt.ArrayLike, mask: npt.ArrayLike | None = None) -> Moments:
    """Count, mean and sum of squared deviations over every axis but the channel axis 1.

    mean = 1/m Σ x  and  M2 = Σ (x − mean)²: lines 1 and 2 of Algorithm 1 in Ioffe & Szegedy (2015), by the
    two-pass method, corrected for the rounding of the mean (Chan, Golub & LeVeque 1983).

    Args:
        x: Input, (N, C, *spatial).
        mask: Valid positions are True, (N, *spatial).

    Example:
        >>> batch = moments([[1.0, 10.0], [3.0, 30.0]])
        >>> batch.count, batch.mean, batch.variance, batch.unbiased_variance
        (2, array([ 2., 20.]), array([  1., 100.]), array([  2., 200.]))
    """
    values = double(x)
    rows = by_channel(values, checked_mask(mask, values))  # (C, M)
    count = rows.shape[1]
    if count == 0:
        return empty_moments(rows.shape[0])
    rough_mean = rows.sum(axis=1) / count  # (C,)  Algorithm 1, line 1
    deviation = rows - rough_mean[:, np.newaxis]  # (C, M)
    # In exact arithmetic the deviations sum to 0. What they do sum to is the rounding error of the mean.
    residue = deviation.sum(axis=1)  # (C,)
    mean = rough_mean + residue / count  # (C,)
    m2 = np.square(deviation).sum(axis=1) - np.square(residue) / count  # (C,)  Algorithm 1, line 2, times m
    # The correction may reach below 0 by rounding alone. A NaN stays a NaN.
    return Moments(count, mean, np.maximum(m2, 0.0))


def welford_update(state: Moments, observation: npt.ArrayLike) -> Moments:
    """Take one more observation into the state (Welford 1962).

    δ = x − mean;  mean' = mean + δ/n;  M2' = M2 + δ·(x − mean'), with n the new count.

    Args:
        state: The statistics so far.
        observation: One value of each channel, (C,).

    Example:
        >>> state = empty_moments(1)
        >>> for value in (1.0, 2.0, 6.0):
        ...     state = welford_update(state, [value])
        >>> state.count, state.mean, state.m2
        (3, array([3.]), array([14.]))
    """
    x = double(observation)  # (C,)
    count = state.count + 1
    delta = x - state.mean  # (C,)
    mean = state.mean + delta / count  # (C,)
    # One factor is the deviation from the old mean and one from the new: that is what makes the step exact.
    m2 = state.m2 + delta * (x - mean)  # (C,)
    return Moments(count, mean, m2)


def merge(first: Moments, second: Moments) -> Moments:
    """Give the statistics of two sets of observations together (Chan, Golub & LeVeque 1979).

    With δ = mean₂ − mean₁ and n = n₁ + n₂:  mean = mean₁ + δ·n₂/n;  M2 = M2₁ + M2₂ + δ²·n₁·n₂/n.
    The last term is what an average of variances leaves out: the spread between the two means.

    Args:
        first: The statistics of one set.
        second: The statistics of the other.

    Example:
        >>> merged = merge(moments([[0.0], [2.0]]), moments([[10.0], [12.0]]))
        >>> merged.count, merged.mean, merged.variance
        (4, array([6.]), array([26.]))
    """
    count = first.count + second.count
    if count == 0:
        return first
    delta = second.mean - first.mean  # (C,)
    mean = first.mean + delta * (second.count / count)  # (C,)
    between = np.square(delta) * (first.count * second.count / count)  # (C,)
    return Moments(count, mean, first.m2 + second.m2 + between)


def pooled_moments(parts: Iterable[Moments]) -> Moments:
    """Give the statistics of all parts together, as if their observations had come in one batch.

    Example:
        >>> parts = [moments([[0.0], [2.0]]), moments([[10.0]]), moments([[12.0]])]
        >>> pooled_moments(parts).variance
        array([26.])
    """
    collected = list(parts)
    if not collected:
        raise ValueError("pooled_moments needs at least one part")
    state = collected[0]
    for part in collected[1:]:
        state = merge(state, part)
    return state
