"""The same norms on other processes: what each has in its buffers, and how many values it normalises by."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..population.ranks import Ranks as Group
from .evidence import Evidence, Layer, Ranks

__all__ = ["together"]


def together(paths: Sequence[tuple[str, int]], work: Callable[[], Evidence]) -> tuple[Evidence, Ranks | None]:
    """Evidence from this process, and how it compares with that of the others.

    An error on one process raises on all: none waits for another that has left.

    Args:
        paths: The norms and their channels, the same on all processes.
        work: Collects the evidence here.
    """
    group = Group()
    if group.size == 1:
        return work(), None
    group.agree("the model", list(paths))
    found: list[Evidence] = []

    def numbers() -> Tensor:
        found.append(work())
        layers = {layer.path: layer for layer in found[0].layers}
        return torch.cat([_packed(layers[path], channels) for path, channels in paths])

    length = sum(2 * channels + 2 for _, channels in paths)
    rows = group.together(length, numbers)
    return found[0], _compared(group, paths, rows)


def _packed(layer: Layer, channels: int) -> Tensor:
    calls = () if layer.in_training is None else layer.in_training.first_step
    ends = [float(layer.batches_tracked or 0), float(calls[0].values if calls else 0)]
    statistics = [
        layer.tensors[name].double() if name in layer.tensors else torch.zeros(channels, dtype=torch.float64)
        for name in ("running_mean", "running_var")
    ]
    return torch.cat([*statistics, torch.tensor(ends, dtype=torch.float64)])


def _compared(group: Group, paths: Sequence[tuple[str, int]], rows: Tensor) -> Ranks:
    means, ratios, counts, values = {}, {}, {}, {}
    start = 0
    for path, channels in paths:
        mean, var, ends = rows[:, start : start + 2 * channels + 2].split([channels, channels, 2], dim=1)
        start += 2 * channels + 2
        scale = var[:1].clamp(min=torch.finfo(torch.float32).tiny)
        means[path] = float(((mean - mean[:1]).abs() / scale.sqrt()).max()) if channels else 0.0
        ratio = (var.clamp(min=torch.finfo(torch.float32).tiny) / scale).flatten()
        ratios[path] = float(ratio[ratio.log().abs().nan_to_num(torch.inf).argmax()]) if channels else 1.0
        counts[path] = tuple(int(each) for each in ends[:, 0])
        values[path] = tuple(int(each) for each in ends[:, 1])
    return Ranks(group.rank, group.size, means, ratios, counts, values)
