"""``adapt``: running statistics between those of the training data and those of other data."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import ArgumentError
from .batches import Forward
from .engine import Order, retake
from .pool import Pool
from .progress import Progress
from .result import Recalibration
from .target import Target

__all__ = ["adapt"]


def adapt(
    model: torch.nn.Module,
    batches: Iterable[Any] | Tensor,
    *,
    prior: float = 0,
    max_samples: int | None = None,
    forward: Forward | None = None,
    process_group: dist.ProcessGroup | None = None,
    order: Order = "one-pass",
    progress: Progress = None,
) -> Recalibration:
    r"""Moves the running statistics of a model's batch norms towards those of other data, in place.

    .. math:: \mu = \frac{N}{N + n} \mu_\text{source} + \frac{n}{N + n} \mu_\text{target}, \qquad
              \sigma^2 = \frac{N}{N + n} \sigma^2_\text{source} + \frac{n}{N + n} \sigma^2_\text{target}

    with the prior N, the number n of samples in ``batches`` (on all ranks), the statistics that the layer has
    (source) and those of the data (target): Schneider et al., "Improving robustness against common corruptions by
    covariate shift adaptation" (2020, arXiv 2006.16971). The fewer samples there are, the larger a prior they need.
    With N = 0 this is :func:`batchnorm.recalibrate`, which is also how everything else is done: no labels are read,
    a layer sees what the adapted statistics before it give, and on any failure the model is as it was. In one pass
    those are the source's and the batch's (or, of less than 32 samples, the ones so far), n being the samples so far:
    of this rank, times the number of ranks, for what the others have by then is not known. So in the norms after the
    first, ranks and one process differ a little; layer by layer they do not.

    Args:
        model: As for :func:`batchnorm.recalibrate`.
        batches: Data of the target.
        prior: N, how many samples the source's statistics weigh as much as. ``float("inf")`` leaves them.
        max_samples: As for :func:`batchnorm.recalibrate`, and so are the other arguments.
        forward: Called as ``forward(model, batch)``.
        process_group: The ranks that do this together.
        order: ``"one-pass"`` or ``"layer-by-layer"``.
        progress: True, or a function.

    Returns:
        What has moved, and how far. ``num_batches_tracked`` stays as it was where the prior is above 0.

    Raises:
        ArgumentError: A negative prior, or samples that cannot be counted to weigh against it.
        NonfiniteError: As for :func:`batchnorm.recalibrate`.
        RankError: As for :func:`batchnorm.recalibrate`.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(1))
        >>> _ = adapt(model, torch.tensor([[4.0], [4.0], [10.0]]), prior=6)
        >>> model[0].running_mean, model[0].running_var  # 6/9 of (0, 1) and 3/9 of (6, 12)
        (tensor([2.]), tensor([4.6667]))
    """
    if math.isnan(prior) or prior < 0:
        raise ArgumentError(f"prior is {prior}.", "give a number of samples, 0 or more.")

    def blended(target: Target, pool: Pool, samples: int | None) -> tuple[Tensor, Tensor]:
        source = 0.0 if not prior or samples is None else 1.0 if math.isinf(prior) else prior / (prior + samples)
        mean, var = pool.mean, pool.unbiased()
        old_mean, old_var = target.source
        # Not a + (b − a)·w: at either end exactly one of the two.
        return old_mean * source + mean * (1 - source), old_var * source + var * (1 - source)

    return retake(
        model,
        batches,
        blended,
        max_samples=max_samples,
        forward=forward,
        process_group=process_group,
        order=order,
        progress=progress,
        tool="adapt",
        keeps_count=prior > 0,
        needs_samples=prior > 0,
    )
