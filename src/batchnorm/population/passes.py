"""Passes over the batches: in one, or a pass a layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..errors import ArgumentError, BatchNormError
from .batches import Batches
from .evaluating import Evaluating
from .pool import Pool, moments_of
from .progress import Report
from .ranks import Ranks
from .target import Target

__all__ = ["Blend", "NonfiniteError", "Seen", "layer_by_layer", "one_pass"]

# What a layer is to normalise by, from its source's statistics, the pooled ones and the number of samples.
Blend: TypeAlias = Callable[[Target, Pool, "int | None"], tuple[Tensor, Tensor]]
# A batch of this many samples is normalised by its own moments in one pass; a smaller one by all so far. Measured in
# docs/recalibrate.md.
ENOUGH = 32


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
        progress: Report | None,
    ) -> None:
        self.model, self.targets, self.batches, self.ranks = model, targets, batches, ranks
        self.evaluating = evaluating
        self._progress = progress
        self.passes = 1
        self._checks: list[tuple[Target, Tensor]] = []
        self.samples: int | None = 0  # of this pass, this rank, the batch that is running among them

    def over_batches(self, number: int = 1) -> Iterator[Any]:
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
                self._progress(self.count, total, number, self.passes)

    def take(
        self, target: Target, arguments: tuple[Any, ...], keywords: dict[str, Any], pool: Pool
    ) -> tuple[int, Pool]:
        """Adds the moments of a call's input; gives how many samples it had, and a pool of these alone."""
        own = target.pool()
        given = target.called_with(arguments, keywords)
        if given is None or given[0].numel() == 0:
            return 0, own
        moments = moments_of(*given)
        self._checks.append((target, torch.isfinite(moments[1]).all() & torch.isfinite(moments[2]).all()))
        pool.add(*moments)
        own.add(*moments)
        return given[0].shape[0], own

    def _check(self, index: int) -> None:
        if self._checks and not all(torch.stack([finite.cpu() for _, finite in self._checks]).tolist()):
            target = next(target for target, finite in self._checks if not finite)
            raise NonfiniteError(
                f"batch {index} gives {target.name} an input that is not finite.",
                "leave the batch out, or find out where the values come from; the model is as it was.",
            )

    def reaches(self, batch: Any) -> bool:
        """Runs the model; whether a hook left its forward pass."""
        try:
            self.batches.run(self.model, batch)
        except _Reached:
            return True
        return False

    def totals(self) -> Tensor:
        """Batches and samples of this rank's pass; −1 where samples cannot be counted."""
        samples = -1 if self.samples is None else self.samples
        return torch.tensor([self.count, samples], dtype=torch.float64, device="cpu")


def one_pass(
    model: torch.nn.Module,
    targets: Sequence[Target],
    batches: Batches,
    ranks: Ranks,
    evaluating: Evaluating,
    progress: Report | None,
    blend: Blend,
) -> Seen:
    """All layers in one pass, each normalising by its batch's own moments, or a small batch by all so far."""
    this = _Passes(model, targets, batches, ranks, evaluating, progress)
    pools = {target: target.pool() for target in targets}

    def before(target: Target, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        pool = pools[target]
        samples, own = this.take(target, arguments, keywords, pool)
        # What other ranks have seen by now is not known; as much as this one, in the mean.
        so_far = None if this.samples is None else this.samples * ranks.size
        mean, var = blend(target, pool, so_far)
        if samples >= ENOUGH:
            # Of a mask there may be left less than that.
            enough = own.count >= ENOUGH
            own_mean, own_var = blend(target, own, so_far)
            mean, var = torch.where(enough, own_mean, mean), torch.where(enough, own_var, var)
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
    progress: Report | None,
    blend: Blend,
) -> Seen:
    """A pass for each call of a layer, in the order of the calls; it stops there."""
    this = _Passes(model, targets, batches, ranks, evaluating, progress)
    index_of = {target: index for index, target in enumerate(targets)}
    steps, first, begun = _first_pass(this, index_of)
    last = {index: step for step, index in enumerate(steps)}
    whole = {index: targets[index].pool() for index in last}  # over all of a layer's calls
    found: list[tuple[Tensor, Tensor]] = []  # what each call normalises by until its layer's last one is known

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
            if step == 0:
                return torch.cat([this.totals(), (begun or pool).packed()])
            evaluating.hook = before
            for batch in this.over_batches(step + 1):
                made = 0
                if this.reaches(batch):
                    continue
                if made > step:
                    raise _caught(aim)
                raise _other_calls(aim)
            return torch.cat([this.totals(), pool.packed()])

        rows = ranks.together(2 + Pool.length(aim.mean.numel()), work)
        totals = _totals(rows)
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
    pools = [whole.get(index) or target.pool() for index, target in enumerate(targets)]
    return Seen(pools, *first, max(len(steps), 1))


def _first_pass(this: _Passes, index_of: dict[Target, int]) -> tuple[list[int], tuple[int, int | None], Pool | None]:
    """Which layers are called, one after the other; all batches and samples; and this rank's pool of the first call.

    The first batch, which runs to its end, shows the calls. It is the first of the first pass, not one before it:
    batches that can be had only once are then all seen, or missed by the second pass.
    """
    made: list[int] = []
    pool: Pool | None = None
    whole = True  # the batch that runs to its end
    call = 0

    def before(target: Target, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        nonlocal pool, call
        if target.called_with(arguments, keywords) is None:
            return
        call += 1
        if whole:
            made.append(index_of[target])
        if call > 1:
            return
        if index_of[target] != made[0]:
            raise _other_calls(target)
        pool = pool or target.pool()
        this.take(target, arguments, keywords, pool)
        if not whole:
            raise _Reached

    def work() -> Tensor:
        nonlocal whole, call
        this.evaluating.hook = before
        for batch in this.over_batches():
            call = 0
            if this.reaches(batch) or whole:
                whole, this.passes = False, max(len(made), 1)
            elif call and made:
                raise _caught(this.targets[made[0]])
            elif made:
                raise _other_calls(this.targets[made[0]])
        return torch.cat([this.totals(), torch.tensor([float(len(made))], device="cpu")])

    rows = this.ranks.together(3, work)
    longest = int(rows[:, 2].max())
    row = torch.full((longest,), -1.0, device="cpu")
    row[: len(made)] = torch.tensor(made, dtype=torch.float32, device="cpu")
    orders = this.ranks.gather(row)[rows[:, 0] > 0]
    if len(orders) and not bool((orders == orders[0]).all()):
        raise ArgumentError("ranks call the norms in different orders.", 'take order="one-pass".')
    return [int(index) for index in orders[0].tolist()] if len(orders) else [], _totals(rows), pool


def _caught(target: Target) -> ArgumentError:
    return ArgumentError(
        f"the model catches what should leave its forward pass at {target.name}.", 'take order="one-pass".'
    )


def _other_calls(target: Target) -> ArgumentError:
    return ArgumentError(
        f"not every batch calls the norms in the order in which the first does (seen at {target.name}).",
        'take order="one-pass".',
    )


def _totals(rows: Tensor) -> tuple[int, int | None]:
    samples = rows[:, 1]
    return int(rows[:, 0].sum()), None if bool((samples < 0).any()) else int(samples.sum())
