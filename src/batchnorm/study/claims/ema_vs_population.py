"""At a high learning rate running averages lag behind the weights, and statistics of the population are steadier."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch

from ...population import recalibrate
from ...report.chart import Curves, Figure, Panels, Series
from ...report.number import signed
from ..apparatus.precise import caught_up, precise
from ..claim import (
    About,
    Conclusion,
    Effect,
    Report,
    Result,
    Run,
    SubjectClaim,
    Topic,
    Value,
    Verdict,
    by_arm,
)
from ..data import Source, Split, split
from ..learning import LEARNT, SHARE, baseline, learnt, shortfall
from ..percent import axis
from ..statements import Case, joined, rank
from ..statistics import interval, paired
from ..subjects import Stack, Subject
from ..training import Recipe, train

__all__ = ["CLAIM", "EmaVersusPopulation"]

# What a run keeps, its name on charts, and its color there.
_KINDS = (("running", "running averages", 2), ("population", "population", 1))


@dataclass(frozen=True, kw_only=True)
class EmaVersusPopulation(SubjectClaim):
    """Looks at one training with two statistics: the running averages it keeps, and those of images drawn anew.

    Args:
        subject: The network.
        rates: Learning rates, ascending; the verdict looks at the last.
        steps: Updates of each training.
        every: Steps between two looks.
        samples: Training images that the population's statistics are taken of.
        counts: Other numbers of images, up to all that there are.
        rare: Looks from one to the next at which all numbers of images are tried.
        settled: True lets the running averages catch up before each look: the effect removed.
        margin: The factor by which running averages must be less steady.
        tolerance: Points of accuracy that more images may add.
        share: Of the way from guessing to 100%, what a network must come.
    """

    subject: Subject = Stack(((8, 2), (16, 2), (32, 2)))
    rates: tuple[float, ...] = (0.02, 0.1, 0.4)
    steps: int = 300
    every: int = 10
    samples: int = 1000
    counts: tuple[int, ...] = (32, 100, 316, 3000)
    rare: int = 5
    settled: bool = False
    margin: float = 1.2
    tolerance: float = 0.5
    share: float = SHARE

    about: ClassVar[About] = About(
        id="ema-vs-population",
        topic=Topic.HURTS,
        title="At a high learning rate evaluation by running averages jumps; by population statistics it is steadier",
        statement=(
            "In training batch norm keeps a running average of batch statistics, for use at test. It averages over "
            "weights as they were up to some tens of steps ago, and where each step changes them much these "
            "statistics fit the present weights badly. Statistics taken anew with the present weights, over some "
            "training images, are steadier from look to look, and a thousand images are enough."
        ),
        formula=(
            r"\text{running: } r_t = (1 - \alpha)\, r_{t-1} + \alpha\, s(w_t, B_t) \qquad "
            r"\text{population: } s(w_t, X) \qquad "
            r"\text{unsteadiness} = \sqrt{\operatorname{mean}_t (a_{t+1} - a_t)^2}"
        ),
        symbols=(
            "Here s(w, B) are the means and variances that weights w give on images B, α is the momentum of the "
            "running average (0.1 unless the network says otherwise), X are images drawn from the training part, and "
            "a is the validation accuracy at a look."
        ),
        source="Wu & Johnson 2021, Rethinking Batch in BatchNorm (arXiv 2105.07576), Section 3, on PreciseBN",
        paper=(
            "There 10³ to 10⁴ samples are found to be enough. Networks and images here are others, and far smaller: "
            "that some thousand are enough can be compared, the number at which it begins cannot."
        ),
        setup=(
            "SGD with momentum 0.9 and batches of 60, 300 steps at a constant learning rate of 0.02, 0.1 or 0.4 (in a "
            "pilot, seed 100 of the default data, the network learnt with each; higher rates were not tried). Every "
            "10 steps the validation split is looked at twice with the same weights: with the running averages, and, "
            "in a copy, with statistics of 1,000 training images, drawn anew at each look so that their own noise "
            "counts. Every 50 steps also with 32, 100, 316 and 3,000 images, or as many as there are. The training "
            "itself does not know of it. Both looks are at the same weights, so no rate favours either. The test "
            "split plays no part. (Two things were changed after results on seeds 0 to 4 were seen, for networks and "
            "data other than the default's; the verdict there is the same. The control was one pass at the network's "
            "own momentum, which leaves a lag where that or the number of batches is small. And what more images add "
            "was judged also where there are hardly more than 1,000.)"
        ),
        metric=(
            "root mean square change of validation accuracy from one look to the next, after the first third of the "
            "training (before that the pilot's curves rose with either, which is change too, so the pilot led to "
            "leaving it out); and accuracy with statistics of all training "
            "images (at most 3,000) minus that with 1,000"
        ),
        direction="larger with running averages at the highest rate; no larger than 0.5 points",
        pass_rule=(
            "Both at the rate 0.4, by 95% intervals over seeds. Reproduced: the change with running averages is more "
            "than 1.2 times that with statistics of the population (paired, in logarithms; a change of one image is "
            "the least that counts), and 1,000 images lose less than 0.5 points against all. Not reproduced: one of "
            "the intervals lies wholly on the other side. Where there are fewer than 2,000 training images, what more "
            "of them add is not tested and the first alone decides. Otherwise, or if a network stopped being finite or "
            "has not learnt with statistics of the population, inconclusive. " + LEARNT
        ),
        control=(
            "Before each look a copy sets its running averages back and passes all training images once in training "
            "mode, in batches of 60, without an update; the averages are then of these batches, all alike, and do not "
            "lag behind the weights."
        ),
        budget=70,
        tier="standard",
        smallest=60,
    )

    def check(self, parts: Split) -> None:
        """As for every claim; and there must be statistics to take."""
        super().check(parts)
        recalibrate(self.subject.build(parts, 0), parts.train[0][: self.smallest])

    def without_effect(self) -> EmaVersusPopulation:
        """The running averages have caught up at each look."""
        return replace(self, settled=True)

    def plan(self, seeds: Sequence[int], data: Source | None) -> list[Run]:
        """One run a learning rate and seed."""
        return [Run(self.about.id, f"{rate:g}", seed, data) for seed in seeds for rate in self.rates]

    def execute(self, run: Run, report: Report) -> dict[str, Value]:
        """Trains one network, and looks at it with both statistics."""
        parts = split(run.source, run.seed)
        images = parts.train[0]
        # Modules draw first weights that the subject then replaces: torch's generator is afterwards as it was.
        with torch.random.fork_rng(devices=[]):
            model = self.subject.build(parts, run.seed)
        recipe = Recipe(float(run.arm), steps=self.steps, every=self.every)
        curve: list[float] = []
        settled: list[float] = []
        samples = min(self.samples, len(images))
        by_count: dict[int, list[float]] = {
            count: [] for count in sorted({samples, *(min(count, len(images)) for count in self.counts)})
        }

        def watch(step: int) -> None:
            order = torch.randperm(
                len(images),
                generator=torch.Generator().manual_seed(100_003 * run.seed + step),
            )
            seen = {count: images[order[:count]] for count in by_count}
            curve.append(precise(model, seen[samples], parts.validation))
            if self.settled:
                settled.append(caught_up(model, images[order], recipe.batch_size, parts.validation))
            if step % (self.rare * self.every) == 0:
                for count, chosen in seen.items():
                    again = count != samples
                    by_count[count].append(precise(model, chosen, parts.validation) if again else curve[-1])

        history = train(model, parts, recipe, seed=run.seed, report=report, watch=watch)
        return {
            "steps": [float(step) for step in history.steps],
            "running": settled if self.settled else list(history.validation),
            "population": curve,
            "best": max(curve),
            "counts": [float(count) for count in by_count],
            "by count": [float(np.mean(found)) for found in by_count.values()],
            "diverged": history.diverged,
            **baseline(parts),
        }

    def conclude(self, results: Sequence[Result]) -> Conclusion:
        """Compares how much the two curves jump, and what more images add."""
        arms = {float(arm): runs for arm, runs in by_arm(results).items()}
        high = arms[self.rates[-1]]
        # Of few training images there are no more to add.
        tested = self._most(high) >= 2 * self.samples
        enough = Case(
            "enough",
            [self._added(result) for result in high.values()],
            self.tolerance,
            False,
            False,
        )
        ratios = [_logs(result, "running") - _logs(result, "population") for result in high.values()]
        jumps = Case("jumps", ratios, math.log(self.margin), True, True)
        missing = self._missing(high)
        verdict = (
            Verdict.INCONCLUSIVE if missing else joined([jumps.verdict, enough.verdict] if tested else [jumps.verdict])
        )
        ratio = jumps.interval.exponential()
        effects = [
            Effect(
                f"Change of validation accuracy between looks, running averages over population, rate {rate:g}",
                interval(
                    [_logs(result, "running") - _logs(result, "population") for result in runs.values()]
                ).exponential(),
                "×",
                ratio=True,
            )
            for rate, runs in sorted(arms.items(), reverse=True)
        ]
        added = Effect(
            f"Validation accuracy at rate {self.rates[-1]:g}, statistics of {self._most(high):,} images minus "
            f"{self._least(high):,}",
            enough.interval,
            "points",
        )
        if tested:
            effects.insert(0 if rank(enough.verdict) < rank(jumps.verdict) else 1, added)
        for rate, runs in sorted(arms.items(), reverse=True):
            gaps = [100 * float(np.mean(_apart(result))) for result in runs.values()]
            name = f"Validation accuracy, population minus running averages, mean of all looks, rate {rate:g}"
            effects.append(Effect(name, interval(gaps), "points"))
        reason = (
            f"At rate {self.rates[-1]:g} validation accuracy changes between looks by "
            f"{_typical(high, 'running'):.1f} points with running averages and by {_typical(high, 'population'):.1f} "
            f"with statistics of {self._least(high):,} images (geometric means over seeds), {ratio.estimate:.2f} times "
            f"as much ({ratio.low:.2f} to {ratio.high:.2f}). "
        )
        reason += (
            f"Statistics of {self._most(high):,} images add {signed(enough.interval.estimate)} points "
            f"({signed(enough.interval.low)} to {signed(enough.interval.high)})."
            if tested
            else f"What more than {self.samples:,} images add is not tested: there are too few, at most "
            f"{self._most(high):,}."
        )
        charts: list[Figure] = [
            _curves_chart(arms),
            self._jumps_chart(arms),
            _counts_chart(arms),
        ]
        return Conclusion(verdict, reason + missing, effects, charts, self._findings(arms))

    def _added(self, result: Result) -> float:
        """Points that the most images add to the number that is looked at every time."""
        seen = dict(zip(result.numbers("counts"), result.numbers("by count"), strict=True))
        return 100 * (seen[max(seen)] - seen[min(self.samples, max(seen))])

    def _most(self, runs: Mapping[int, Result]) -> int:
        return int(max(max(result.numbers("counts")) for result in runs.values()))

    def _least(self, runs: Mapping[int, Result]) -> int:
        return min(self.samples, self._most(runs))

    def _missing(self, runs: Mapping[int, Result]) -> str:
        """Why the networks say nothing, as a sentence; empty where they do."""
        if any(result.values["diverged"] for result in runs.values()):
            return " But the training of a network stopped being finite."
        if lacking := [result for result in runs.values() if not learnt(result, self.share)]:
            return f" But with statistics of the population a network stayed at {shortfall(lacking[0], self.share)}."
        return ""

    def _findings(self, arms: Mapping[float, Mapping[int, Result]]) -> list[str]:
        found = []
        for rate, runs in arms.items():
            apart = [100 * max(_apart(result)) for result in runs.values()]
            last = [100 * result.numbers(what)[-1] for what in ("running", "population") for result in runs.values()]
            half = len(last) // 2
            most = f"one look shows up to {max(apart):.1f} points" if max(apart) > 0 else "no look shows"
            found.append(
                f"At rate {rate:g} {most} more with statistics of the population "
                f"than with running averages, and after the last step they give {np.mean(last[half:]):.1f}% and "
                f"{np.mean(last[:half]):.1f}% on the validation split (means over seeds)."
            )
        counts = next(iter(arms[self.rates[-1]].values())).numbers("counts")
        columns = zip(
            *(result.numbers("by count") for result in arms[self.rates[-1]].values()),
            strict=True,
        )
        by_count = ", ".join(
            f"{100 * np.mean(column):.1f}% with {int(count):,}" for count, column in zip(counts, columns, strict=True)
        )
        found.append(
            f"Validation accuracy at rate {self.rates[-1]:g} by the number of images for the statistics, mean over "
            f"seeds and looks every {self.rare * self.every} steps: {by_count}."
        )
        return found

    def _jumps_chart(self, arms: Mapping[float, Mapping[int, Result]]) -> Curves:
        lines = []
        for what, label, color in _KINDS:
            spans = [
                interval([_logs(result, what) for result in runs.values()]).exponential() for runs in arms.values()
            ]
            shown = all(math.isfinite(span.high) for span in spans)
            lines.append(
                Series(
                    label,
                    list(arms),
                    [100 * span.estimate for span in spans],
                    color,
                    [100 * span.low for span in spans] if shown else None,
                    [100 * span.high for span in spans] if shown else None,
                    markers=True,
                )
            )
        return Curves(
            "How much validation accuracy changes from one look to the next, by learning rate",
            "learning rate",
            "root mean square change (points)",
            lines,
            log_x=True,
            log_y=True,
            x_ticks=list(arms),
            note=f"Looks every {self.every} steps, after the first third. Geometric mean over seeds, 95% intervals.",
        )


def _logs(result: Result, what: str) -> float:
    """Logarithm of the root mean square change between looks, after the first third of the steps."""
    steps, curve = result.numbers("steps"), np.array(result.numbers(what))
    changes = np.diff(curve[np.array(steps) > steps[-1] / 3])
    typical = math.sqrt(float(np.mean(np.square(changes)))) if len(changes) else 0.0
    return math.log(max(typical, 1 / result.number("validation images")))


def _typical(runs: Mapping[int, Result], what: str) -> float:
    return 100 * math.exp(float(np.mean([_logs(result, what) for result in runs.values()])))


def _apart(result: Result) -> list[float]:
    """Population minus running averages, look by look."""
    return (np.array(result.numbers("population")) - np.array(result.numbers("running"))).tolist()


def _curves_chart(arms: Mapping[float, Mapping[int, Result]]) -> Panels:
    drawn = []
    for rate, runs in arms.items():
        # One run: a mean over seeds would smooth what is to be seen.
        one = next(iter(runs.values()))
        drawn.append(
            (
                f"Learning rate {rate:g}",
                [
                    Series(
                        label,
                        one.numbers("steps"),
                        [100 * value for value in one.numbers(what)],
                        color,
                    )
                    for what, label, color in _KINDS
                ],
            )
        )
    edges = axis(line for _, lines in drawn for line in lines)
    return Panels(
        "One training looked at with two statistics: running averages, and taken anew with the weights at hand",
        [Curves(title, "training steps", "validation accuracy (%)", lines, y_range=edges) for title, lines in drawn],
        note="The run of the first seed at each rate; both lines are of the same weights.",
    )


def _counts_chart(arms: Mapping[float, Mapping[int, Result]]) -> Curves:
    lines = []
    for (rate, runs), color in zip(arms.items(), (1, 3, 2, 4, 5), strict=False):
        counts = next(iter(runs.values())).numbers("counts")
        # Against the most, seed by seed: what differs between seeds is not the question.
        columns = list(zip(*(result.numbers("by count") for result in runs.values()), strict=True))
        spans = [paired(column, columns[-1]).scaled(100) for column in columns]
        shown = all(math.isfinite(span.high) for span in spans)
        lines.append(
            Series(
                f"rate {rate:g}",
                counts,
                [span.estimate for span in spans],
                color,
                [span.low for span in spans] if shown else None,
                [span.high for span in spans] if shown else None,
                markers=True,
            )
        )
    return Curves(
        "What statistics of fewer images cost in validation accuracy",
        "images",
        f"points, against {int(max(lines[0].x)):,} images",
        lines,
        log_x=True,
        x_ticks=lines[0].x,
        note="Mean over looks and seeds, 95% intervals over seeds.",
    )


CLAIM = EmaVersusPopulation()
