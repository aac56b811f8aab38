"""The same norms on other processes: what each has in its buffers, and how many values it normalises by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from ..errors import ArgumentError
from ..population.ranks import Ranks as Group
from .evidence import Evidence, Layer, Ranks

__all__ = ["Accord", "together"]

_T = TypeVar("_T")

# Beside mean and variance of a layer: batches tracked, values of a channel, samples.
_NUMBERS = 3


class Accord:
    """Steps that several processes take together: where one raises, all do. One process alone just takes them.

    Each process takes as many steps as the others. What runs inside of a step may exchange numbers itself, if it raises
    on all ranks or on none before it does.

    Args:
        active: Whether there are other processes.
        model: What this is about, as for :class:`batchnorm.population.ranks.Ranks`.
    """

    def __init__(self, active: bool, model: torch.nn.Module | None) -> None:
        self._group = Group(model=model) if active else None

    def step(self, work: Callable[[], _T]) -> _T:
        """What ``work`` gives here.

        Raises:
            RankError: It raised on another rank, and not here.
        """
        if self._group is None:
            return work()
        given: list[_T] = []

        def done() -> Tensor:
            given.append(work())
            return torch.zeros(1, device="cpu")

        self._group.together(1, done)
        return given[0]

    def same(self, value: object) -> bool:
        """Whether ``repr(value)`` is the same on all ranks."""
        if self._group is None:
            return True
        try:
            self._group.agree("", value)
        except ArgumentError:
            return False
        return True

    def any(self, value: bool) -> bool:
        """Whether it is true on any rank."""
        return (
            value if self._group is None else bool(self._group.gather(torch.tensor([float(value)], device="cpu")).any())
        )


def together(
    paths: Sequence[tuple[str, int]],
    work: Callable[[Callable[[int], int] | None], Evidence],
    model: torch.nn.Module | None,
) -> tuple[Evidence, Ranks | None]:
    """Evidence from this process, and how it compares with that of the others.

    An error on one process raises on all: none waits for another that has left. (But for a model whose own forward pass
    exchanges numbers: where it raises half-way on one process, the others are in the middle of that.)

    Args:
        paths: The norms and their channels, the same on all processes.
        work: Collects the evidence here. It calls what it is given with the number of its batches, and takes so many
            as that gives, the smallest number of any process: a norm that synchronises waits for all of them.
        model: Whose norms they are.
    """
    group = Group(model=model)
    if group.size == 1:
        return work(None), None
    group.agree("the model", list(paths))
    batches = _Batches(group)
    length = 1 + sum(2 * channels + _NUMBERS for _, channels in paths)
    try:
        evidence = work(batches.agreed)
        batches.agreed(0)
        layers = {layer.path: layer for layer in evidence.layers}
        numbers = torch.cat(
            [torch.zeros(1, device="cpu"), *(_packed(layers[path], channels) for path, channels in paths)]
        )
    except BaseException as error:
        if not batches.failed:
            group.fail(error, length if batches.asked else 1)
        raise
    return evidence, _compared(group, paths, evidence, group.gather(numbers)[:, 1:])


class _Batches:
    """How many batches all processes take: asked once, by a process without batches too."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self.asked = self.failed = False

    def agreed(self, count: int) -> int:
        if self.asked:
            return count
        self.asked = self.failed = True  # what is raised here is raised on all
        counts = self._group.gather(torch.tensor([float(count)], device="cpu"))[:, 0].tolist()
        if 0 in counts and any(counts):
            raise ArgumentError(
                f"rank {counts.index(0)} was given no batches, and others were.", "give batches on all or on none."
            )
        self.failed = False
        return int(min(counts))


def _packed(layer: Layer, channels: int) -> Tensor:
    calls = () if layer.in_training is None else layer.in_training.first_step
    samples = calls[0].shape[0] if calls and calls[0].shape else 0
    ends = [float(layer.batches_tracked or 0), float(calls[0].values if calls else 0), float(samples)]
    statistics = [
        layer.tensors[name].double()
        if name in layer.tensors
        else torch.zeros(channels, dtype=torch.float64, device="cpu")
        for name in ("running_mean", "running_var")
    ]
    return torch.cat([*statistics, torch.tensor(ends, dtype=torch.float64, device="cpu")])


def _compared(group: Group, paths: Sequence[tuple[str, int]], evidence: Evidence, rows: Tensor) -> Ranks:
    means, ratios, counts, values, samples = {}, {}, {}, {}, {}
    eps = {layer.path: layer.eps or 0.0 for layer in evidence.layers}
    start = 0
    for path, channels in paths:
        end = start + 2 * channels + _NUMBERS
        mean, var, ends = rows[:, start:end].split([channels, channels, _NUMBERS], dim=1)
        start = end
        # As the layer divides: where the variance is next to nothing, eps decides, and a difference is none.
        scale = (var.clamp(min=0) + eps[path]).clamp(min=torch.finfo(torch.float32).tiny)
        means[path] = _largest(_difference(mean) / scale[:1].sqrt())
        ratios[path] = _farthest(torch.where(_difference(var) > 0, scale / scale[:1], 1.0))
        counts[path], values[path], samples[path] = (tuple(int(each) for each in column) for column in ends.T)
    return Ranks(group.rank, group.size, means, ratios, counts, values, samples)


def _difference(rows: Tensor) -> Tensor:
    """From rank 0, absolute; infinite where one of the two is not finite and the other is something else."""
    equal = (rows == rows[:1]) | (rows.isnan() & rows[:1].isnan())
    return torch.where(equal, 0.0, (rows - rows[:1]).abs().nan_to_num(torch.inf, torch.inf))


def _largest(values: Tensor) -> float:
    return float(values.nan_to_num(torch.inf, torch.inf).max()) if values.numel() else 0.0


def _farthest(ratios: Tensor) -> float:
    if not ratios.numel():
        return 1.0
    flat = ratios.flatten().nan_to_num(torch.inf, torch.inf)
    return float(flat[flat.log().abs().argmax()])
