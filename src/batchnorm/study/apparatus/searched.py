"""Arms that are trained at several learning rates each, and compared at the rate that is best for each of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from ..claim import Result, Run, by_arm
from ..data import Source
from ..learning import learnt, shortfall
from ..search import ends
from ..statistics import Interval, paired

__all__ = ["Grids", "Tuned", "chosen", "common", "lacking", "parted", "planned", "ratio", "tuned"]

#: The learning rates that each arm is searched over.
Grids = Mapping[str, Sequence[float]]
#: Of each arm the run at its best rate, by seed.
Tuned = Mapping[str, Mapping[int, Result]]


def planned(claim: str, grids: Grids, seeds: Sequence[int], data: Source | None) -> list[Run]:
    """One run an arm, rate and seed."""
    return [
        Run(claim, _name(arm, rate), seed, data) for seed in seeds for arm, rates in grids.items() for rate in rates
    ]


def parted(run: Run) -> tuple[str, float]:
    """Arm and learning rate of a run."""
    arm, rate = run.arm.rsplit(" ", 1)
    return arm, float(rate)


def tuned(results: Sequence[Result], grids: Grids) -> dict[str, dict[int, Result]]:
    """Of each arm and seed the run with the best validation accuracy; of equals, the one at the lowest rate.

    A run that stopped being finite is taken only where all of them did.
    """
    runs = by_arm(results)
    return {
        arm: {
            seed: max(
                (runs[_name(arm, rate)][seed] for rate in sorted(rates)),
                key=lambda result: (not result.values["diverged"], result.number("best")),
            )
            for seed in sorted({result.run.seed for result in results})
        }
        for arm, rates in grids.items()
    }


def common(results: Sequence[Result], grids: Grids, share: float) -> dict[float, dict[str, dict[int, Result]]]:
    """By learning rate the runs of all arms, for each rate that all of them have and learnt with in every seed."""
    runs = by_arm(results)
    shared = set.intersection(*(set(rates) for rates in grids.values()))
    found = {}
    for rate in sorted(shared):
        pair = {arm: runs[_name(arm, rate)] for arm in grids}
        if all(_usable(result, share) for arm in pair.values() for result in arm.values()):
            found[rate] = pair
    return found


def chosen(best: Tuned, grids: Grids, words: Mapping[str, str]) -> str:
    """Which rates were chosen, as a finding.

    Args:
        best: As :func:`tuned` gives it.
        grids: What they were chosen from.
        words: The arms' names in the text.
    """
    rates = "; ".join(
        f"{words[arm]} {', '.join(f'{parted(result.run)[1]:g}' for result in runs.values())}"
        for arm, runs in best.items()
    )
    searched = [(parted(result.run)[1], grids[arm]) for arm, runs in best.items() for result in runs.values()]
    return f"Rates chosen on the validation split, seed by seed: {rates}. {ends(searched)}"


def lacking(best: Tuned, words: Mapping[str, str], share: float) -> str:
    """Why networks at their best rate say nothing, as a sentence; empty where they do."""
    for arm, runs in best.items():
        for seed, result in runs.items():
            if result.values["diverged"]:
                return f" But {words[arm]}, seed {seed}, stopped being finite at every rate."
            if not learnt(result, share):
                return f" But {words[arm]}, seed {seed}, stayed at {shortfall(result, share)}."
    return ""


def ratio(
    treatment: Mapping[int, Result], control: Mapping[int, Result], level: Callable[[Result], float]
) -> tuple[list[float], Interval]:
    """Of a level that is a logarithm: the differences seed by seed, and their interval as factors."""
    pairs = [(level(treatment[seed]), level(control[seed])) for seed in control]
    treated, untreated = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    return [math.fsum((after, -before)) for after, before in pairs], paired(treated, untreated).exponential()


def _usable(result: Result, share: float) -> bool:
    return not result.values["diverged"] and learnt(result, share)


def _name(arm: str, rate: float) -> str:
    return f"{arm} {rate:g}"
