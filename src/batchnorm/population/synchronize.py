"""``synchronize``: the running statistics of several processes become one."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..nn.domain import DomainNorm
from .layers import named, tracked_norms, why_frozen
from .ranks import RankError, Ranks

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["synchronize"]


def synchronize(model: torch.nn.Module, process_group: ProcessGroup | None = None) -> None:
    r"""Merges the running statistics of all ranks, in place: afterwards they are the same, to the bit, on each.

    Under data parallelism every rank moves its statistics by its own part of each batch, so each evaluates another
    function, and the checkpoint holds rank 0's. With the weights :math:`w_r` of the ranks,

    .. math:: \mu = \frac{\sum_r w_r \mu_r}{\sum_r w_r}, \qquad
              \sigma^2 = \frac{\sum_r w_r \sigma_r^2}{\sum_r w_r}
                       + \frac{\sum_r w_r (\mu_r - \mu)^2}{\sum_r w_r}

    the law of total variance: an average of variances alone lacks what lies between the means, which is most where
    the ranks saw different data. Computed in float64.

    - Weights: a layer with ``momentum=None`` averages over all its batches, so its rank weighs
      ``num_batches_tracked``; with a momentum each rank weighs the same, for its statistics are of the last few
      batches. A rank that has tracked no batch weighs nothing; where none has, the layer stays as it is.
    - ``num_batches_tracked`` becomes the largest: how often the layer has been trained, as in one process with the
      whole batch. So synchronizing twice is synchronizing once; a sum would grow with every call.

    Every rank calls this, with the same model: one exchange compares what the layers are, a second one has all their
    statistics. Frozen layers are left alone. Without a process group, or with one rank, nothing happens.

    Args:
        model: Any module, wrapped in ``DistributedDataParallel`` or not.
        process_group: The ranks to merge; None for all.

    Raises:
        ArgumentError: The norms of the ranks are different ones. Raised on all, as the next is.
        RankError: A statistic of some rank is not finite, or a rank failed. Nothing has changed on any.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(2))
        >>> synchronize(model)  # one process: as it is
    """
    ranks = Ranks(process_group, model)
    if ranks.size == 1:
        return
    try:
        own = [one for path, layer in tracked_norms(model) for one in _statistics(path, layer)]
    except BaseException as error:
        ranks.fail(error, 1)
        raise
    ranks.agree("the set of batch norms that track statistics", [one.what() for one in own])
    if not own:
        reasons = why_frozen(model)
        if reasons:
            warnings.warn(
                f"no statistics were merged: all of the model's are frozen ({'; '.join(reasons)}). "
                f"To merge them: {', '.join(reasons.values())}.",
                stacklevel=2,
            )
        return
    try:
        numbers = torch.cat([torch.empty(0, dtype=torch.float64, device="cpu"), *(one.packed() for one in own)])
    except BaseException as error:
        ranks.fail(error, sum(one.length for one in own))
        raise
    gathered = ranks.gather(numbers)
    parts = gathered.split([one.length for one in own], dim=1)
    for one, part in zip(own, parts, strict=False):
        one.check(part)
    merged = [one.merged(part) for one, part in zip(own, parts, strict=False)]
    _write([pair for pairs in merged for pair in pairs])


@dataclass(frozen=True)
class _Statistics:
    """A mean, a variance and a count of batches.

    Attributes:
        layer: Path and class.
        averages: Whether all batches weigh the same, those of the past too (``momentum=None``).
    """

    layer: str
    averages: bool
    mean: Tensor
    var: Tensor
    count: Tensor | None

    @property
    def length(self) -> int:
        """How many numbers it takes."""
        return 2 * self.mean.numel() + 1

    def what(self) -> tuple[Any, ...]:
        """What has to be the same on all ranks."""
        dtypes = [str(each.dtype) for each in (self.mean, self.var)]
        return self.layer, self.averages, tuple(self.mean.shape), dtypes, self.count is None

    def packed(self) -> Tensor:
        """Mean, variance and count, one after the other."""
        count = torch.ones(1, device="cpu") if self.count is None else self.count.detach().reshape(1)
        return torch.cat([each.detach().to("cpu", torch.float64) for each in (self.mean, self.var, count)])

    def check(self, all_ranks: Tensor) -> None:
        """Raises, on every rank alike, where what one of them sent is not finite."""
        bad = (~all_ranks.isfinite()).nonzero()
        if len(bad):
            rank, position = bad[0].tolist()
            name = ("running_mean", "running_var", "num_batches_tracked")[position // self.mean.numel()]
            error = RankError(
                f"{name} of {self.layer} on rank {rank} is not finite; no rank has changed.",
                "load statistics that are, or estimate them anew with batchnorm.recalibrate.",
            )
            error.ranks = tuple(sorted({int(each) for each in bad[:, 0]}))
            raise error

    def merged(self, all_ranks: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Each tensor, and what becomes of it."""
        channels = self.mean.numel()
        means, variances, counts = all_ranks.split([channels, channels, 1], dim=1)
        weights = counts if self.averages else (counts > 0).to(torch.float64)
        counted = weights.flatten().nonzero().flatten().tolist()
        if not counted:
            return []
        weights = weights / weights.sum()
        # Around one rank's, not around 0: ranks that agree keep their statistics to the last bit.
        mean = means[counted[0]] + (weights * (means - means[counted[0]])).sum(0)
        within = variances[counted[0]] + (weights * (variances - variances[counted[0]])).sum(0)
        between = (weights * (means - mean).square()).sum(0)
        changed = [(self.mean, mean), (self.var, within + between)]
        return changed if self.count is None else [*changed, (self.count, counts.max().reshape(self.count.shape))]


def _statistics(path: str, layer: Any) -> list[_Statistics]:
    parts: dict[str, Any] = {"": layer}
    if isinstance(layer, DomainNorm):
        parts = {f" in {name}": each for name, each in layer.statistics.items()}
    return [
        _Statistics(
            named(path, layer) + where,
            layer.momentum is None,
            each.running_mean,
            each.running_var,
            each.num_batches_tracked,
        )
        for where, each in parts.items()
    ]


@torch.no_grad()
def _write(pairs: list[tuple[Tensor, Tensor]]) -> None:
    before = [tensor.clone() for tensor, _ in pairs]
    try:
        for tensor, value in pairs:
            tensor.copy_(value)
    except BaseException:
        for (tensor, _), old in zip(pairs, before, strict=False):
            tensor.copy_(old)
        raise
