"""Population statistics from the statistics of batches: as the paper defines them, and as they should be.

Ioffe & Szegedy (2015), Algorithm 2, line 10, averages the variances of batches and corrects for their size.
Wu & Johnson, "Rethinking 'Batch' in BatchNorm" (2021, arXiv 2105.07576), add the means: by the law of total
variance σ² = E[μ_B² + σ_B²] − E[μ_B]². Both need only what each batch gives. `moments.pooled_moments` is the
same truth from counts and sums of squared deviations.
"""

import numpy as np
import numpy.typing as npt

from .arrays import Array, double


def average_of_batches(
    batch_means: npt.ArrayLike, batch_variances: npt.ArrayLike, batch_size: int
) -> tuple[Array, Array]:
    """Population statistics by Algorithm 2, line 10: E[x] = E_B[μ_B];  Var[x] = m/(m − 1)·E_B[σ_B²].

    Unbiased where the m values of a batch are drawn independently of each other. Where they are not (the
    pixels of one image, a batch of one class), part of the variance lies between the batch means, and this
    leaves it out.

    Args:
        batch_means: μ_B of each batch, (K, C).
        batch_variances: Biased variance σ_B² of each batch, (K, C).
        batch_size: m, values a channel in one batch.

    Example:
        >>> average_of_batches([[1.0], [11.0]], [[1.0], [1.0]], batch_size=2)
        (array([6.]), array([2.]))
    """
    if batch_size < 2:
        raise ValueError(f"Algorithm 2 divides by batch_size − 1; batch_size is {batch_size}")
    mean = double(batch_means).mean(axis=0)  # (C,)
    bessel = batch_size / (batch_size - 1)
    variance = bessel * double(batch_variances).mean(axis=0)  # (C,)
    return mean, variance


def law_of_total_variance(
    batch_means: npt.ArrayLike, batch_variances: npt.ArrayLike, counts: npt.ArrayLike | None = None
) -> tuple[Array, Array]:
    """Population statistics by the law of total variance: E[x] = E_B[μ_B];  Var[x] = E_B[σ_B²] + Var_B[μ_B].

    Var_B[μ_B] is taken as E_B[(μ_B − E[x])²], never as E[μ_B²] − E[μ_B]², which cancels where the mean is
    large beside the spread. For batches of equal size, or with `counts`, the result is the biased mean and
    variance of all observations together.

    Args:
        batch_means: μ_B of each batch, (K, C).
        batch_variances: Biased variance σ_B² of each batch, (K, C).
        counts: Values a channel in each batch, (K,), where they differ; the expectations weigh by them.

    Example:
        >>> law_of_total_variance([[1.0], [11.0]], [[1.0], [1.0]])
        (array([6.]), array([26.]))
    """
    means, variances = double(batch_means), double(batch_variances)  # (K, C), (K, C)
    weights = np.ones(len(means)) if counts is None else double(counts)  # (K,)
    weights = weights / weights.sum()  # (K,)
    mean = weights @ means  # (C,)
    within = weights @ variances  # (C,)
    between = weights @ np.square(means - mean)  # (C,)
    return mean, within + between


def variance_between_means(batch_means: npt.ArrayLike) -> Array:
    """Var_B[μ_B], (C,): what an average of batch variances lacks.

    For K batches of m values each it ties the two definitions together:
    pooled σ² = (m − 1)/m · (variance of `average_of_batches`) + Var_B[μ_B].

    Args:
        batch_means: μ_B of each batch, (K, C).

    Example:
        >>> variance_between_means([[1.0], [11.0]])
        array([25.])
    """
    means = double(batch_means)  # (K, C)
    between: Array = np.square(means - means.mean(axis=0)).mean(axis=0)  # (C,)
    return between
