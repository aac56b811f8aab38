"""Whether what a model answers for a sample depends on the others of its batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._pytree import tree_map_only

from ..population.batches import Batches, samples_of
from ..surgery.example import fresh
from ..surgery.randomness import seeded
from .evidence import Independence
from .outputs import tensors_in
from .watch import Watch

__all__ = ["independence"]

# Where a sample's result is computed by other blocks of a matrix product, it differs by roundings.
_ROUNDING = 1e-4


def independence(
    model: torch.nn.Module,
    norms: Sequence[tuple[str, _NormBase]],
    batch: Any,
    feed: Batches,
    back: Callable[[], None],
) -> Independence | None:
    """Runs a batch in evaluation mode, and then copies of its first sample.

    Args:
        model: The model.
        norms: Its norms with their paths.
        batch: The batch.
        feed: How the model is called.
        back: Puts the model back as it was.

    Returns:
        None where the batch has not two samples, or the outputs are no tensors of one row a sample.
    """
    count = samples_of(batch)
    if count is None or count < 2:
        return None

    def alone(tensor: Tensor) -> Tensor:
        return tensor[:1].expand_as(tensor).clone() if tensor.dim() and tensor.shape[0] == count else tensor

    watch = Watch(norms)
    watch.records = False
    results = []
    with torch.no_grad():
        for given in (fresh(batch), tree_map_only(Tensor, alone, fresh(batch))):
            model.eval()
            watch.start()
            with seeded():
                output = feed.run(model, given)
            rows = [each[0] for each in tensors_in(output) if each.dim() and each.shape[0] == count]
            seen = {path: each.first_sample for path, each in watch.watched.items()}
            results.append((rows, seen))
            for each in watch.watched.values():
                each.first_sample = []
            back()
    (rows, seen), (others, others_seen) = results
    if not rows or len(rows) != len(others):
        return None
    difference = max(_relative(one, other) for one, other in zip(rows, others, strict=True))
    layers = tuple(
        path
        for path in watch.order
        if any(_relative(one, other) > _ROUNDING for one, other in zip(seen[path], others_seen[path], strict=False))
    )
    return Independence(difference, layers, count)


def _relative(one: Tensor, other: Tensor) -> float:
    """The largest difference, over the largest absolute value; infinite where only one of two values is finite."""
    if one.shape != other.shape or not one.numel():
        return 0.0
    one, other = (each.to(torch.complex128 if each.is_complex() else torch.float64) for each in (one, other))
    equal = (one == other) | (one.isnan() & other.isnan())
    difference = torch.where(equal, 0.0, (one - other).abs().nan_to_num(torch.inf, torch.inf)).max()
    return float(difference / one.abs().nan_to_num(0.0, 0.0).max().clamp(min=1e-12))
