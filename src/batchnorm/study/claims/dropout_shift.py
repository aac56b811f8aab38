"""Dropout before batch norm: the variance that is learned in training is not the one met at test."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch

from ...population import recalibrate
from ...report.chart import Curves, Figure, Intervals, Panels, Row, Series
from ...report.number import signed
from ..apparatus.dropout import PLACEMENTS, with_dropout
from ..apparatus.population import met
from ..apparatus.shift import gaussian_ratio, learned_variance, shifts
from ..claim import TIERS, About, Conclusion, Effect, Report, Result, Run, SubjectClaim, Topic, Value, Verdict, by_arm
from ..data import Source, Split, split
from ..error import StudyError
from ..learning import LEARNT, SHARE, baseline, learnt, shortfall
from ..percent import axis
from ..statements import joined
from ..statistics import Interval, interval, paired
from ..subjects import Stack, Subject
from ..training import Recipe, accuracy, train

__all__ = ["CLAIM", "DropoutShift"]

_EXACT = "exact"
_NONE = "no dropout"
_DEEPER = " Deeper layers also get a smaller input at test, because the layers before them divide by too much."
# Layers whose numbers fit on an axis.
_TICKS = 12
# Of each placement, on every chart.
_COLORS = dict(zip(PLACEMENTS, (2, 5, 1, 3), strict=True))


@dataclass(frozen=True, kw_only=True)
class DropoutShift(SubjectClaim):
    """Measures the shift on Gaussian values, where the formula is exact, and in trained networks.

    Args:
        exact_rates: Dropout rates of the Gaussian values.
        means: Their means, in standard deviations.
        batches: How many batches the layer learns from, and the size and channels of each.
        subject: The network without dropout.
        arms: Placement and rate of the networks with dropout; the verdict looks at the first, against no dropout.
        learning_rate: Of all networks.
        steps: Updates of each training.
        dropout: False sets every rate to 0: the effect removed.
        tolerance: How far the learned variance may be from the formula, as a share of it.
        margin: The factor by which the network's shift must grow.
        share: Of the way from guessing to 100%, what the network without dropout must come. The one with dropout
            need not: that it may not get there at test is what the shift does.
    """

    exact_rates: tuple[float, ...] = (0.1, 0.25, 0.5)
    means: tuple[float, ...] = (0.0, 1.0, 2.0)
    batches: tuple[int, int, int] = (100, 256, 64)
    subject: Subject = Stack(((8, 2), (16, 2), (32, 2)))
    arms: tuple[tuple[str, float], ...] = (("before norm", 0.5), ("before norm", 0.25), ("before last", 0.5))
    learning_rate: float = 0.05
    steps: int = 250
    dropout: bool = True
    tolerance: float = 0.02
    margin: float = 1.1
    share: float = SHARE

    about: ClassVar[About] = About(
        id="dropout-shift",
        topic=Topic.HURTS,
        title="Dropout before batch norm makes it learn a variance that it never meets at test",
        statement=(
            "Dropout keeps a value with probability p and divides it by p, so its mean stays and its variance grows. "
            "At test nothing is dropped and the variance is the smaller one, but batch norm there divides by the one "
            "that it learned in training. Dropout after the last batch norm does no such thing. What the shift costs "
            "in accuracy, and what taking the statistics again without dropout recovers, is measured below and is no "
            "part of the verdict."
        ),
        formula=(
            r"\operatorname{Var}_{\text{train}} = \frac{\sigma^2 + (1 - p)\,\mu^2}{p} \qquad "
            r"\operatorname{Var}_{\text{test}} = \sigma^2 \qquad \text{shift} = "
            r"\max\!\left(\frac{\text{real}}{\text{learned}}, \frac{\text{learned}}{\text{real}}\right)"
        ),
        symbols=(
            "Here μ and σ² are the mean and variance of a value before dropout, and p is the probability that it is "
            "kept, 1 minus the dropout rate."
        ),
        source=(
            "Li et al. 2018, Understanding the Disharmony between Dropout and Batch Normalization by Variance Shift "
            "(arXiv 1801.05134)"
        ),
        paper=(
            "A DenseNet on CIFAR-100 falls from 77.42% to 68.55% test accuracy with dropout. Here another network sees "
            "other images for 250 steps: the formula and the direction can be compared, the accuracies cannot."
        ),
        setup=(
            "Gaussian values with standard deviation 1 and mean 0, 1 or 2 pass dropout at rates 0.1, 0.25 and 0.5 and "
            "a batch norm layer in training mode (100 batches of 256, 64 channels, momentum 0.1); then the same "
            "without dropout. And networks: SGD with momentum 0.9 at rate 0.05 (a pilot on other seeds), batches of "
            "60, 250 steps, the last weights. One is without dropout of ours; others have it directly before each "
            "batch norm, or once, before the last linear layer; from the tier standard on also directly after each "
            "batch norm, which guides advise against, and after each activation, all at three rates. Dropout that a "
            "network has itself stays in all of them. Networks of a seed share split, initial weights and batch "
            "order. The real variance is that over all training images in evaluation mode, with the statistics "
            "learned in training in force in all layers. Then the same weights get the statistics of exactly these "
            "images, taken without dropout in one pass, and the test split is looked at with both. Learned and new "
            "statistics are compared on the same weights, so no rate favours either. What it costs depends on the "
            "network: in the pilot (seeds 100 to 102 of the default data) three fully connected layers of 128 had a "
            "shift 2.1 to 2.2 times that without dropout, and no measurable loss of accuracy from it."
        ),
        metric=(
            "learned over real variance of Gaussian values; the network's shift as the geometric mean over all "
            "channels of all batch norm layers, each variance with the ε that the layer adds to it"
        ),
        direction="equal to the formula; larger with dropout before batch norm than without dropout",
        pass_rule=(
            "Reproduced: at every rate and mean the 95% interval of learned over real variance lies within 2% of the "
            "formula, and the network's shift with dropout at 0.5 before batch norm is larger than without dropout "
            "by a factor whose interval, paired by seed in logarithms, lies above 1.1. Not reproduced: one of the "
            "intervals lies wholly outside these 2%, or that of the factor below 1.1. Otherwise, or if a network "
            "without dropout has not learnt with its last weights, or one that is compared stopped being finite, "
            "inconclusive. " + LEARNT
        ),
        control="Every dropout rate is 0.",
        budget=35,
        smallest=60,
    )

    @property
    def budget(self) -> float:
        """By the number of networks; what is declared is for the cheapest tier's four."""
        return self.about.budget * (len(self.arms) + 1) / 4

    def at(self, tier: str) -> DropoutShift:
        """Above the cheapest tier every placement, at every rate."""
        if tier == TIERS[0]:
            return self
        return replace(self, arms=tuple((place, rate) for place in PLACEMENTS for rate in (0.5, 0.25, 0.1)))

    def check(self, parts: Split) -> None:
        """As for every claim; and a batch norm that learns statistics must be among the layers that images reach."""
        super().check(parts)
        if not met(self.subject.build(parts, 0), parts.train[0][:2]):
            raise StudyError(
                f"the network ({self.subject.description}) calls no batch norm with running statistics.",
                "give one with track_running_stats=True, or leave this claim out",
            )

    def without_effect(self) -> DropoutShift:
        """Nothing is dropped anywhere."""
        return replace(self, dropout=False)

    def _networks(self) -> dict[str, tuple[str, float]]:
        arms = {f"{placement} {rate:g}": (placement, rate) for placement, rate in self.arms}
        return arms | {_NONE: (self.arms[0][0], 0.0)}

    def plan(self, seeds: Sequence[int], data: Source | None) -> list[Run]:
        """One run an arm and seed, and one for the Gaussian values."""
        return [Run(self.about.id, arm, seed, data) for seed in seeds for arm in (_EXACT, *self._networks())]

    def execute(self, run: Run, report: Report) -> dict[str, Value]:
        """Measures the learned and the real variances of one arm."""
        # Dropout knows no generator but torch's own. The run seeds it, and it is afterwards as it was before.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(run.seed)
            return self._gaussian(report) if run.arm == _EXACT else self._network(run, report)

    def _gaussian(self, report: Report) -> dict[str, Value]:
        values: dict[str, Value] = {}
        pairs = [(rate, mean) for rate in self.exact_rates for mean in self.means]
        for place, (rate, mean) in enumerate(pairs):
            report(place / len(pairs), f"rate {rate:g}, mean {mean:g}")
            values[_name(rate, mean)] = gaussian_ratio(rate if self.dropout else 0.0, mean, self.batches)
        return values

    def _network(self, run: Run, report: Report) -> dict[str, Value]:
        placement, rate = self._networks()[run.arm]
        rate = rate if self.dropout else 0.0
        parts = split(run.source, run.seed)
        images = parts.train[0]
        model = self.subject.build(parts, run.seed)
        if not with_dropout(model, placement, rate, images[:2]):
            return {"absent": True}
        recipe = Recipe(self.learning_rate, steps=self.steps, every=self.steps)
        history = train(model, parts, recipe, seed=run.seed, report=lambda done, note: report(0.8 * done, note))
        found = shifts(model, images, rate)
        if not history.diverged:
            recalibrate(model, images.split(500))
        return {
            "absent": False,
            **found,
            "validation": history.validation[-1],
            "test": history.test,
            "test anew": accuracy(model, *parts.test),
            "diverged": history.diverged,
            **baseline(parts),
        }

    def conclude(self, results: Sequence[Result]) -> Conclusion:
        """Compares the Gaussian values with the formula, and the network with the one without dropout."""
        arms = by_arm(results)
        exact_runs = arms.pop(_EXACT)
        absent = [placement for name, (placement, _) in self._networks().items() if _absent(arms[name])]
        arms = {name: runs for name, runs in arms.items() if not _absent(runs)}
        gaussian = {
            (rate, mean): interval([result.number(_name(rate, mean)) for result in exact_runs.values()])
            for rate in self.exact_rates
            for mean in self.means
        }
        off = {key: found.scaled(1 / learned_variance(*key)) for key, found in gaussian.items()}
        highest = self._highest(arms)
        factors = {name: _factor(arms[name], arms[_NONE]) for name in highest}
        main_name = highest[0]
        main = factors[main_name]
        exact, network = self._exact_verdict(list(off.values())), self._network_verdict(main)
        missing = self._missing(arms[_NONE], arms[main_name])
        verdict = Verdict.INCONCLUSIVE if missing else joined([exact, network])
        effects = [
            Effect(f"Shift of the network, dropout {name} against none", factor, "×", ratio=True)
            for name, factor in factors.items()
        ]
        # Where the Gaussian values say less than the network they decide; first what refutes, then what is farthest.
        exact_decides = not missing and verdict is exact and exact is not network
        farthest = max(
            off,
            key=lambda key: (
                self._exact_verdict([off[key]]) is Verdict.NOT_REPRODUCED,
                max(off[key].high - 1, 1 - off[key].low),
            ),
        )
        shown = [key for key in gaussian if key[0] == max(self.exact_rates)]
        if exact_decides:
            effects.insert(0, _gaussian_effect(farthest, gaussian[farthest]))
            shown = [key for key in shown if key != farthest]
        effects += [_gaussian_effect(key, gaussian[key]) for key in shown]
        gains = {name: _gain(runs) for name, runs in arms.items()}
        effects += [
            Effect(f"Test accuracy, new statistics minus learned, {_spoken(name)}", gains[name], "points")
            for name in (*highest, _NONE)
        ]
        effects += [
            Effect(
                f"Test accuracy that new statistics win with dropout {name} beyond without it",
                _gain_beyond(arms[name], arms[_NONE]),
                "points",
            )
            for name in highest
        ]
        worst = max(abs(found.estimate - 1) for found in off.values())
        shifts = interval([result.number("shift") for result in arms[main_name].values()])
        reason = (
            f"Learned over real variance of Gaussian values is within {100 * worst:.1g}% of the formula at every rate "
            f"and mean, as means over seeds. With dropout {main_name} the network's variances are off by a factor of "
            f"{shifts.estimate:.2f}, which is {main.estimate:.2f} times ({main.low:.2f} to {main.high:.2f}) that "
            f"without dropout.{missing}"
        )
        within = exact is Verdict.REPRODUCED
        charts: list[Figure] = [
            self._formula_chart(gaussian, within),
            self._rates_chart(arms),
            self._layers_chart(arms),
            _gain_chart(gains),
        ]
        return Conclusion(verdict, reason, effects, charts, self._findings(arms, main, list(dict.fromkeys(absent))))

    def _highest(self, arms: Mapping[str, Mapping[int, Result]]) -> list[str]:
        """Of each placement that the network has, the arm of the highest rate; first the one that decides."""
        networks = self._networks()
        present = [name for name in arms if name != _NONE]
        by_placement: dict[str, list[str]] = {}
        for name in sorted(present, key=lambda name: name != next(iter(networks))):
            by_placement.setdefault(networks[name][0], []).append(name)
        return [max(names, key=lambda name: networks[name][1]) for names in by_placement.values()]

    def _exact_verdict(self, off: Sequence[Interval]) -> Verdict:
        """What the Gaussian values say, given as shares of the formula."""
        low, high = 1 - self.tolerance, 1 + self.tolerance
        if any(found.low > high or found.high < low for found in off):
            return Verdict.NOT_REPRODUCED
        within = all(low <= found.low and found.high <= high for found in off)
        return Verdict.REPRODUCED if within else Verdict.INCONCLUSIVE

    def _network_verdict(self, factor: Interval) -> Verdict:
        if factor.high < self.margin:
            return Verdict.NOT_REPRODUCED
        return Verdict.REPRODUCED if factor.low > self.margin else Verdict.INCONCLUSIVE

    def _missing(self, plain: Mapping[int, Result], dropped: Mapping[int, Result]) -> str:
        """Why the networks say nothing, as a sentence; empty where they do."""
        if diverged := [result for arm in (plain, dropped) for result in arm.values() if result.values["diverged"]]:
            return f" But the training of a network stopped being finite ({diverged[0].run.arm})."
        if lacking := [result for result in plain.values() if not learnt(result, self.share, "validation")]:
            return f" But a network without dropout stayed at {shortfall(lacking[0], self.share, 'validation')}."
        return ""

    def _findings(self, arms: Mapping[str, Mapping[int, Result]], main: Interval, absent: Sequence[str]) -> list[str]:
        highest = self._highest(arms)
        found = [
            f"Test accuracy with the learned and with the new statistics, mean over seeds: without dropout "
            f"{100 * _mean(arms[_NONE], 'test'):.1f}% and {100 * _mean(arms[_NONE], 'test anew'):.1f}%; "
            + "; ".join(
                f"dropout {name} {100 * _mean(arms[name], 'test'):.1f}% and {100 * _mean(arms[name], 'test anew'):.1f}%"
                for name in highest
            )
            + ". Without dropout, where the running statistics only lag behind weights that still move, new ones "
            f"change the accuracy by {_gained(_mean(arms[_NONE], 'test anew') - _mean(arms[_NONE], 'test'))} points: "
            "only what goes beyond that is dropout's."
        ]
        apart = [
            f"{_gained(_mean(arms[name], 'test') - _mean(arms[_NONE], 'test'))} and "
            f"{_gained(_mean(arms[name], 'test anew') - _mean(arms[_NONE], 'test anew'))} {name}"
            for name in highest
        ]
        found.append(
            f"Against no dropout, in points of test accuracy with the learned and with the new statistics: "
            f"{'; '.join(apart)}. The second of the two is no shift: it is what dropout does to what is learnt in so "
            "many steps."
        )
        before = [name for name in arms if name.startswith("before norm")]
        several = max(len(result.numbers("by layer")) for result in arms[highest[0]].values()) > 1
        formula = ", ".join(
            f"{_mean(arms[name], 'first layer over formula'):.2f} at {name.split()[-1]}" for name in before
        )
        found.append(
            f"In the {'first' if several else 'only'} batch norm layer, with dropout of ours directly before it and "
            "nowhere earlier, the learned variance is this share of the formula's, with each channel's own mean: "
            f"{formula}." + (_DEEPER if several and main.low > 1 else "")
        )
        without = interval([math.log(result.number("shift")) for result in arms[_NONE].values()]).exponential()
        found.append(
            f"Without dropout the shift is {without.estimate:.3f}, where 1 is none: running statistics follow weights "
            "that still move, and the larger of two ratios of noisy numbers is above 1. So the verdict looks at the "
            "factor between the two networks."
        )
        if _same(arms):
            found.append(
                "Directly after the norm and after its activation dropout gave exactly the same numbers here: "
                "an activation like ReLU lets a factor that is not negative through, so their order does not matter."
            )
        if absent:
            found.append(
                f"The network has no place for dropout {' or '.join(absent)}, so this is left out: activations are "
                "found where they are modules of their own, and the last linear layer where it is one."
            )
        return found

    def _formula_chart(self, gaussian: Mapping[tuple[float, float], Interval], within: bool) -> Curves:
        fine = np.linspace(0, max(self.exact_rates), 41).tolist()
        lines = []
        for mean, color in zip(self.means, (1, 3, 2, 4, 5), strict=False):
            lines.append(Series(f"mean {mean:g}", fine, [learned_variance(rate, mean) for rate in fine], color))
            measured = [gaussian[rate, mean].estimate for rate in self.exact_rates]
            lines.append(Series("", self.exact_rates, measured, color, markers=True, line=False))
        return Curves(
            "The variance that batch norm learns under dropout is the formula's"
            if within
            else "The variance that batch norm learns under dropout, and the formula's",
            "dropout rate",
            "learned over real variance",
            [*lines, Series("at test", [0.0, max(self.exact_rates)], [1.0, 1.0], 0, dash="dash")],
            note="Lines: the formula, for values with standard deviation 1. Points: measured, mean over seeds.",
        )

    def _rates_chart(self, arms: Mapping[str, Mapping[int, Result]]) -> Panels:
        """Shift and accuracy by rate, a line a placement."""
        networks = self._networks()
        panels: dict[str, list[Series]] = {"shift": [], "test": [], "test anew": []}
        for placement in PLACEMENTS:
            rates = {networks[name][1]: runs for name, runs in arms.items() if networks[name][0] == placement}
            if len(rates) > (placement == self.arms[0][0]):
                rates = {0.0: arms[_NONE]} | dict(sorted(rates.items()))
                for what, lines in panels.items():
                    spans = [_span(runs, what) for runs in rates.values()]
                    low, high = [span.low for span in spans], [span.high for span in spans]
                    shown = all(math.isfinite(value) for value in (*low, *high))
                    lines.append(
                        Series(
                            placement,
                            list(rates),
                            [span.estimate for span in spans],
                            _COLORS[placement],
                            low if shown else None,
                            high if shown else None,
                            markers=True,
                        )
                    )
        edges = axis([*panels["test"], *panels["test anew"]])
        rate, percent = "dropout rate", "test accuracy (%)"
        return Panels(
            "What dropout does by place and rate, before and after the statistics are taken anew",
            [
                Curves("Shift of the variances", rate, "shift (1: none)", panels["shift"], log_y=True),
                Curves("Learned statistics", rate, percent, panels["test"], y_range=edges),
                Curves("New statistics, same weights", rate, percent, panels["test anew"], y_range=edges),
            ],
            note="Means and 95% intervals over seeds. At rate 0 all are one network.",
        )

    def _layers_chart(self, arms: Mapping[str, Mapping[int, Result]]) -> Curves:
        lines = []
        for name in (_NONE, *self._highest(arms)):
            columns = zip(*(result.numbers("by layer") for result in arms[name].values()), strict=True)
            shifts = [interval([math.log(value) for value in column]).exponential() for column in columns]
            finite = all(math.isfinite(shift.high) for shift in shifts)
            lines.append(
                Series(
                    name,
                    [float(layer + 1) for layer in range(len(shifts))],
                    [shift.estimate for shift in shifts],
                    0 if name == _NONE else _COLORS[self._networks()[name][0]],
                    [shift.low for shift in shifts] if finite else None,
                    [shift.high for shift in shifts] if finite else None,
                    markers=True,
                )
            )
        return Curves(
            "How far each layer's learned variance is from the one it meets",
            "batch norm layer",
            "shift (1: none)",
            lines,
            log_y=True,
            x_ticks=lines[0].x if len(lines[0].x) <= _TICKS else None,
            note="Geometric mean over the layer's channels; bands are 95% intervals over seeds.",
        )


def _absent(runs: Mapping[int, Result]) -> bool:
    return any(result.values["absent"] for result in runs.values())


def _same(arms: Mapping[str, Mapping[int, Result]]) -> bool:
    """Whether all arms after the norm equal those after the activation, to the last bit."""
    after = [name.removeprefix("after norm ") for name in arms if name.startswith("after norm ")]
    pairs = [(arms[f"after norm {rate}"], arms.get(f"after activation {rate}", {})) for rate in after]
    return bool(pairs) and all(
        norm.keys() == activation.keys()
        and all(dict(norm[seed].values) == dict(activation[seed].values) for seed in norm)
        for norm, activation in pairs
    )


def _mean(runs: Mapping[int, Result], what: str) -> float:
    return float(np.mean([result.number(what) for result in runs.values()]))


def _span(runs: Mapping[int, Result], what: str) -> Interval:
    """Of the shift in logarithms, of accuracies in per cent."""
    values = [result.number(what) for result in runs.values()]
    if what == "shift":
        return interval([math.log(value) for value in values]).exponential()
    return interval(values).scaled(100)


def _name(rate: float, mean: float) -> str:
    return f"rate {rate:g}, mean {mean:g}"


def _gaussian_effect(pair: tuple[float, float], found: Interval) -> Effect:
    rate, mean = pair
    name = f"Learned over real variance, Gaussian values, rate {rate:g}, mean {mean:g}"
    return Effect(f"{name} (formula: {learned_variance(rate, mean):.3f})", found, "×", ratio=True)


def _gained(share: float) -> str:
    return signed(100 * share, 1)


def _spoken(name: str) -> str:
    return name if name == _NONE else f"dropout {name}"


def _factor(treatment: Mapping[int, Result], control: Mapping[int, Result]) -> Interval:
    logs = [[math.log(runs[seed].number("shift")) for seed in control] for runs in (treatment, control)]
    return paired(*logs).exponential()


def _gain(runs: Mapping[int, Result]) -> Interval:
    after = [result.number("test anew") for result in runs.values()]
    return paired(after, [result.number("test") for result in runs.values()]).scaled(100)


def _gain_beyond(runs: Mapping[int, Result], plain: Mapping[int, Result]) -> Interval:
    gains = [[arm[seed].number("test anew") - arm[seed].number("test") for seed in plain] for arm in (runs, plain)]
    return paired(*gains).scaled(100)


def _gain_chart(gains: Mapping[str, Interval]) -> Intervals:
    rows = [
        Row(_spoken(name), gain.estimate, gain.low, gain.high, 0 if name == _NONE else 1)
        for name, gain in gains.items()
    ]
    return Intervals(
        "What new statistics, taken without dropout, change in test accuracy",
        "percentage points",
        rows,
        0.0,
        "no change",
        note="The same weights with both statistics; 95% intervals over seeds.",
    )


CLAIM = DropoutShift()
