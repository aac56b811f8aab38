"""Passes over the batches: in one, or a pass a layer."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..errors import ArgumentError, BatchNormError
from .batches import Batches
from .evaluating import Evaluating
from .pool import Pool, moments_of
from .ranks import Ranks
from .target import Target

__all__ = ["Blend", "NonfiniteError", "Progress", "Seen", "layer_by_layer", "one_pass"]

# What a layer is to normalise by, from its source's statistics, the pooled ones and the number of samples.
Blend: TypeAlias = Callable[[Target, Pool, "int | None"], tuple[Tensor, Tensor]]
Progress: TypeAlias = "bool | Callable[[int, int | None, int, int], object] | None"


class NonfiniteError(BatchNormError, ValueError):
    """A layer's input had a NaN or an infinity in it."""


class Seen:
    """How many batches and samples there were, and the pool of each layer.

    Args:
        pools: A layer's, on all ranks.
        batches: On all ranks.
        samples: On all ranks; None where they could not be counted.
        passes: Over the batches.
    """

    def __init__(self, pools: Sequence[Pool], batches: int, samples: int | None, passes: int) -> None:
        self.pools, self.batches, self.samples, self.passes = pools, batches, samples, passes


class _Reached(BaseException):
    """Leaves a forward pass. No ``Exception``: the model's own code may catch those."""


class _Passes:
    """What both orders share: the batches of this rank, called through the model."""

    def __init__(
        self,
        model: torch.nn.Module,
        targets: Sequence[Target],
        batches: Batches,
        ranks: Ranks,
        evaluating: Evaluating,
        progress: Progress,
    ) -> None:
        self.model, self.targets, self.batches, self.ranks = model, targets, batches, ranks
        self.evaluating = evaluating
        self._progress = _line if progress is True else progress or None
        self._checks: list[tuple[Target, Tensor]] = []
        self.samples: int | None = 0  # of this pass, this rank, the batch that is running among them

    def over_batches(self, number: int = 1, passes: int = 1) -> Iterator[Any]:
        """Each batch; when the next is asked for, this one's moments are looked at."""
        total = self.batches.total
        self.count, self.samples = 0, 0
        for index, (batch, samples) in enumerate(self.batches):
            self.samples = samples
            self._checks.clear()
            yield batch
            self._check(index)
            self.count = index + 1
            if self._progress is not None:
                self._progress(self.count, total, number, passes)

    def take(self, target: Target, arguments: tuple[Any, ...], keywords: dict[str, Any], pool: Pool) -> None:
        """Adds the moments of a call's input."""
        given = target.called_with(arguments, keywords)
        if given is None or given[0].numel() == 0:
            return
        moments = moments_of(*given)
        self._checks.append((target, torch.isfinite(moments[1]).all() & torch.isfinite(moments[2]).all()))
        pool.add(*moments)

    def _check(self, index: int) -> None:
        if self._checks and not all(torch.stack([finite.cpu() for _, finite in self._checks]).tolist()):
            target = next(target for target, finite in self._checks if not finite)
            raise NonfiniteError(
                f"batch {index} gives {target.name} an input that is not finite.",
                "leave the batch out, or find out where the values come from; the model is as it was.",
            )

    def totals(self) -> Tensor:
        """Batches and samples of this rank's pass; −1 where samples cannot be counted."""
        return torch.tensor([self.count, -1 if self.samples is None else self.samples], dtype=torch.float64)


def one_pass(
    model: torch.nn.Module,
    targets: Sequence[Target],
    batches: Batches,
    ranks: Ranks,
    evaluating: Evaluating,
    progress: Progress,
    blend: Blend,
) -> Seen:
    """All layers in one pass, each normalising by what has reached it so far."""
    this = _Passes(model, targets, batches, ranks, evaluating, progress)
    pools = {target: target.pool() for target in targets}

    def before(target: Target, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        pool = pools[target]
        this.take(target, arguments, keywords, pool)
        mean, var = blend(target, pool, this.samples)
        some = pool.count > 0
        old_mean, old_var = target.source
        target.write(torch.where(some, mean, old_mean), torch.where(some, var, old_var))

    def work() -> Tensor:
        evaluating.hook = before
        for batch in this.over_batches():
            batches.run(model, batch)
        return torch.cat([this.totals(), *(pools[target].packed() for target in targets)])

    lengths = [Pool.length(target.mean.numel()) for target in targets]
    rows = ranks.together(2 + sum(lengths), work)
    count, samples = _totals(rows)
    parts = rows[:, 2:].split(lengths, dim=1)
    merged = [Pool.merged(part, target.mean.device) for part, target in zip(parts, targets, strict=True)]
    return Seen(merged, count, samples, 1)


def layer_by_layer(
    model: torch.nn.Module,
    targets: Sequence[Target],
    batches: Batches,
    ranks: Ranks,
    evaluating: Evaluating,
    progress: Progress,
    blend: Blend,
) -> Seen:
    """A pass for each call of a layer, in the order of the calls; it stops there."""
    this = _Passes(model, targets, batches, ranks, evaluating, progress)
    index_of = {target: index for index, target in enumerate(targets)}
    steps = _calls(this, index_of)
    last = {index: step for step, index in enumerate(steps)}
    whole = {index: targets[index].pool() for index in last}  # over all of a layer's calls
    found: list[tuple[Tensor, Tensor]] = []  # what each call normalises by until its layer's last one is known
    first: tuple[int, int | None] | None = None

    for step, index in enumerate(steps):
        aim, pool = targets[index], targets[index].pool()
        made = 0

        def before(
            target: Target,
            arguments: tuple[Any, ...],
            keywords: dict[str, Any],
            step: int = step,
            pool: Pool = pool,
        ) -> None:
            nonlocal made
            call, made = made, made + 1
            if call > step or index_of[target] != steps[call]:
                raise _other_calls(target)
            if call == step:
                this.take(target, arguments, keywords, pool)
                raise _Reached
            if last[steps[call]] >= step:
                target.write(*found[call])

        def work(
            step: int = step, aim: Target = aim, pool: Pool = pool, before: Callable[..., None] = before
        ) -> Tensor:
            nonlocal made
            evaluating.hook = before
            for batch in this.over_batches(step + 1, len(steps)):
                made = 0
                try:
                    batches.run(model, batch)
                except _Reached:
                    continue
                if made > step:
                    raise ArgumentError(
                        f"the model catches what should leave its forward pass at {aim.name}.",
                        'take order="one-pass".',
                    )
                raise _other_calls(aim)
            return torch.cat([this.totals(), pool.packed()])

        rows = ranks.together(2 + Pool.length(aim.mean.numel()), work)
        totals = _totals(rows)
        first = first or totals
        if totals != first:
            raise ArgumentError(
                f"pass {step + 1} had {totals[0]} batches and {totals[1]} samples, and the first {first[0]} and "
                f"{first[1]}.",
                'give batches that are the same every time, or take order="one-pass".',
            )
        got = Pool.merged(rows[:, 2:], aim.mean.device)
        whole[index].add(got.count, got.mean, got.var, got.calls)
        if not int(got.count):
            found.append(aim.source)
        elif last[index] > step:
            found.append(blend(aim, got, totals[1]))
        else:
            found.append(blend(aim, whole[index], totals[1]))
            aim.write(*found[-1])
    count, samples = first if first is not None else (0, 0)
    pools = [whole.get(index) or target.pool() for index, target in enumerate(targets)]
    return Seen(pools, count, samples, len(steps))


def _calls(this: _Passes, index_of: dict[Target, int]) -> list[int]:
    """Which layers are called, one after the other, as the first batch shows."""
    made: list[int] = []

    def before(target: Target, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        if target.called_with(arguments, keywords) is not None:
            made.append(index_of[target])

    def work() -> Tensor:
        this.evaluating.hook = before
        for batch, _ in this.batches:
            this.batches.run(this.model, batch)
            return torch.tensor([1.0, len(made)])
        return torch.zeros(2)

    counts = this.ranks.together(2, work)
    longest = int(counts[:, 1].max())
    row = torch.full((longest,), -1.0)
    row[: len(made)] = torch.tensor(made, dtype=torch.float32)
    rows = this.ranks.gather(row)[counts[:, 0] > 0]
    if len(rows) and not bool((rows == rows[0]).all()):
        raise ArgumentError("ranks call the norms in different orders.", 'take order="one-pass".')
    return [int(index) for index in rows[0].tolist()] if len(rows) else []


def _other_calls(target: Target) -> ArgumentError:
    return ArgumentError(
        f"not every batch calls the norms in the order in which the first does (seen at {target.name}).",
        'take order="one-pass".',
    )


def _totals(rows: Tensor) -> tuple[int, int | None]:
    samples = rows[:, 1]
    return int(rows[:, 0].sum()), None if bool((samples < 0).any()) else int(samples.sum())


def _line(done: int, total: int | None, number: int, passes: int) -> None:
    of = f" of {total}" if total is not None else ""
    which = f", pass {number} of {passes}" if passes > 1 else ""
    end = "\n" if done == total and number == passes else ""
    print(f"\rrecalibrate: batch {done}{of}{which}", end=end, file=sys.stderr, flush=True)
