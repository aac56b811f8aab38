"""Batch norm reaches the same accuracy in fewer steps; higher learning rates and sigmoids become usable."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from ...report.chart import Chart, Curves, Intervals, Row, Series
from ..claim import About, Claim, Conclusion, Effect, Report, Result, Run, Topic, Value, Verdict, by_arm
from ..data import Source, split
from ..learning import LEARNT, SHARE, baseline, learnt, shortfall
from ..networks import convolutional
from ..percent import axis, standard_error
from ..search import ends
from ..statistics import Interval, interval, paired
from ..training import Recipe, train

__all__ = ["CLAIM", "Arm", "Convergence"]


@dataclass(frozen=True)
class Arm:
    """One way to train the network.

    Args:
        group: What it is, but for the learning rate: "plain", "norm", "adam", "plain sigmoid", "norm sigmoid".
        rate: Learning rate, as a multiple of the base rate (Adam: as it is).
    """

    group: str
    rate: float

    @property
    def name(self) -> str:
        """The arm's name in results."""
        return f"{self.group} {self.rate:g}" if self.group == "adam" else f"{self.group} ×{self.rate:g}"


@dataclass(frozen=True)
class Convergence(Claim):
    """Trains the same network with and without batch norm, each at several learning rates.

    Args:
        layers: Channels and stride of the convolutions. Deep enough that the plain net is not trivial to train,
            shallow enough that, with He's initialisation, it does train.
        base_rate: Learning rate ×1.
        plain_rates: Multiples that the plain net is searched over.
        norm_rates: Multiples for the net with batch norm; those of the paper.
        sigmoid_rates: Multiples that the plain sigmoid net is searched over.
        norm_sigmoid_rates: Multiples for the sigmoid net with batch norm.
        adam_rates: Learning rates that the plain net with Adam is searched over.
        steps: Updates of each run.
        every: Steps between two looks at the validation split.
        norm: False builds every arm without batch norm: the effect removed.
        share: Of the way from guessing to 100%, what the best plain net must come for a comparison to mean anything.
        worthwhile: A ratio of steps that is worth having: an interval below it reproduces the claim, one above it
            refutes it.
    """

    layers: tuple[tuple[int, int], ...] = (
        (8, 2),
        (8, 1),
        (16, 2),
        (16, 1),
        (16, 1),
        (32, 2),
        (32, 1),
        (32, 1),
    )
    base_rate: float = 0.01
    plain_rates: tuple[float, ...] = (0.5, 1, 2, 5, 30)
    norm_rates: tuple[float, ...] = (1, 5, 30)
    sigmoid_rates: tuple[float, ...] = (1, 5, 30)
    norm_sigmoid_rates: tuple[float, ...] = (5,)
    adam_rates: tuple[float, ...] = (0.001, 0.003, 0.01)
    steps: int = 500
    every: int = 10
    norm: bool = True
    share: float = SHARE
    worthwhile: float = 0.9

    about: ClassVar[About] = About(
        id="convergence",
        topic=Topic.DOES,
        title="Batch norm reaches the same accuracy in fewer training steps",
        statement=(
            "A network with batch norm reaches the accuracy of the same network without it in fewer training steps, "
            "each at its best learning rate. What the paper also says, of larger learning rates and of sigmoids, is "
            "measured below and is no part of the verdict."
        ),
        formula=(
            r"\text{ratio} = \frac{\text{steps with batch norm to } A}{\text{steps of the plain net to } A}, \qquad "
            r"A = \text{the plain net's best validation accuracy}"
        ),
        source="Ioffe & Szegedy 2015, Batch Normalization (arXiv 1502.03167), Section 4.2",
        paper=(
            "As reported in secondary sources: Inception needed 31.0 million steps to 72.2% on ImageNet; with "
            "batch norm 13.3 million, at five times the learning rate 2.1 million, at thirty times 2.7 million, "
            "and with sigmoids it reached 69.8%. The paper's text says that the plain net at five times the rate "
            "diverged. Here a far smaller network learns in 500 steps, on the default data "
            "from 3,000 digits: only the direction can be compared, not the numbers."
        ),
        setup=(
            "Eight 3×3 convolutions (8 to 32 channels), average pooling, one linear layer; with batch norm it stands "
            "between convolution and activation. ReLU with He's initialisation, sigmoid with Glorot's. SGD with "
            "momentum 0.9, batches of 60, 500 steps, constant learning rate; ×1 is 0.01, near the plain net's best in"
            " a pilot on other seeds of the default data. Every arm of a seed has the same split, initial weights and"
            " batch order. The plain net is searched over rates ×0.5, ×1, ×2, ×5 and ×30, Adam without batch norm "
            "over 0.001, 0.003 and 0.01, the plain sigmoid net over ×1, ×5 and ×30, batch norm over ×1, ×5 and ×30: "
            "in each seed, the rate with the best validation accuracy. The sigmoid net with batch norm is trained at "
            "×5 only, so that comparison favours the plain sigmoid net, which may choose. The test split is used once"
            " a run, with the weights that were best on the validation split."
        ),
        metric="steps to the best validation accuracy of the best-tuned plain net, looked at every 10 steps",
        direction="fewer with batch norm, by a tenth at least: a ratio below 0.9",
        pass_rule=(
            "Between the best-tuned net with batch norm and the best-tuned plain net, paired by seed, in "
            "logarithms. Reproduced: batch norm gets there in every seed and the 95% interval of the ratio lies "
            "below 0.9. Not reproduced: it does not get there in more than half of the seeds, or the interval lies "
            "above 0.9. Otherwise, or if the plain net has not learnt in one of the seeds, inconclusive. "
            + LEARNT
            + " A run that never gets to the plain net's accuracy counts with its last step, which is too few, so it "
            "can never help to reproduce."
        ),
        control="The arms named batch norm are built without it.",
        budget=360,
        smallest=60,
    )

    def without_effect(self) -> Convergence:
        """No arm has batch norm."""
        return replace(self, norm=False)

    def arms(self) -> dict[str, Arm]:
        """All arms by name."""
        groups = {
            "norm": self.norm_rates,
            "plain": self.plain_rates,
            "norm sigmoid": self.norm_sigmoid_rates,
            "plain sigmoid": self.sigmoid_rates,
            "adam": self.adam_rates,
        }
        arms = [Arm(group, rate) for group, rates in groups.items() for rate in rates]
        return {arm.name: arm for arm in arms}

    def plan(self, seeds: Sequence[int], data: Source | None) -> list[Run]:
        """One run an arm and seed."""
        return [Run(self.about.id, arm, seed, data) for seed in seeds for arm in self.arms()]

    def execute(self, run: Run, report: Report) -> dict[str, Value]:
        """Trains one network."""
        arm = self.arms()[run.arm]
        parts = split(run.source, run.seed)
        model = convolutional(
            self.layers,
            activation="sigmoid" if arm.group.endswith("sigmoid") else "relu",
            norm="before" if self.norm and arm.group.startswith("norm") else "none",
            channels=parts.channels,
            classes=parts.classes,
            seed=run.seed,
        )
        adam = arm.group == "adam"
        recipe = Recipe(
            arm.rate if adam else arm.rate * self.base_rate,
            "adam" if adam else "sgd",
            self.steps,
            every=self.every,
        )
        history = train(model, parts, recipe, seed=run.seed, report=report)
        return history.values() | baseline(parts)

    def conclude(self, results: Sequence[Result]) -> Conclusion:
        """Compares steps to the target of each seed: the best validation accuracy of its best plain net."""
        runs = by_arm(results)
        seeds = sorted({result.run.seed for result in results})
        tuned = {
            group: {seed: _tuned(runs, self._names(group), seed) for seed in seeds}
            for group in ("plain", "norm", "adam", "plain sigmoid", "norm sigmoid")
        }
        plain = tuned["plain"]
        target = {seed: plain[seed].number("best") for seed in seeds}

        def steps_effect(name: str, arm: Mapping[int, Result], share: float = 1.0) -> tuple[Effect, int]:
            """Ratio of steps to a share of the target, against the best-tuned plain net; and how many got there."""
            logs, reached = [], 0
            for seed in seeds:
                own, there = _steps_to(arm[seed], share * target[seed])
                base, _ = _steps_to(plain[seed], share * target[seed])
                logs.append(math.log(own / base))
                reached += there
            missed = len(seeds) - reached
            note = f"{missed} of {len(seeds)} never got there: the ratio is a lower bound" if missed else ""
            return Effect(name, interval(logs).exponential(), "×", note, ratio=True), reached

        main, reached = steps_effect("Steps, batch norm (tuned) against plain (tuned)", tuned["norm"])
        verdict = self._verdict(main.interval, reached, list(plain.values()))
        steps = [main]
        for rate in self.norm_rates:
            arm = runs[Arm("norm", rate).name]
            steps.append(steps_effect(f"Steps, batch norm at rate ×{rate:g} against plain (tuned)", arm)[0])
        steps.append(steps_effect("Steps, Adam without batch norm (tuned) against plain (tuned)", tuned["adam"])[0])
        adam_logs = [
            math.log(_steps_to(tuned["norm"][s], target[s])[0] / _steps_to(tuned["adam"][s], target[s])[0])
            for s in seeds
        ]
        steps_adam = Effect(
            "Steps, batch norm (tuned) against Adam without batch norm (tuned)",
            interval(adam_logs).exponential(),
            "×",
            "a run that never got there counts with its last step",
            ratio=True,
        )
        early, _ = steps_effect(
            "Steps to 95% of that accuracy, batch norm (tuned) against plain (tuned)", tuned["norm"], 0.95
        )
        effects = [*steps, steps_adam, early, *self._accuracy_effects(runs, tuned, seeds)]
        plain_steps = [_steps_to(plain[seed], target[seed])[0] for seed in seeds]
        reason = (
            f"Batch norm needs {main.interval.estimate:.2f} times the plain net's steps "
            f"({main.interval.low:.2f} to {main.interval.high:.2f}) to the plain net's best validation accuracy "
            f"({100 * min(target.values()):.1f} to {100 * max(target.values()):.1f}%), and got there in {reached} of "
            f"{len(seeds)} seeds; the plain net took {min(plain_steps):.0f} to {max(plain_steps):.0f} steps."
        )
        lacking = [result for result in plain.values() if not learnt(result, self.share)]
        if lacking:
            reason += (
                f" But a plain net stayed at {shortfall(lacking[0], self.share)}: there is nothing to be faster at."
            )
        charts, findings = self._charts(runs, tuned, steps), self._findings(runs, tuned)
        return Conclusion(verdict, reason, effects, charts, findings, self._headline(tuned, verdict))

    def _headline(self, tuned: Mapping[str, Mapping[int, Result]], verdict: Verdict) -> Curves:
        faster = verdict is Verdict.REPRODUCED
        return Curves(
            "The same network learns in fewer steps with batch norm"
            if faster
            else "The same network with and without batch norm",
            "training steps",
            "validation accuracy (%)",
            [
                _curve("without batch norm", tuned["plain"], 0, "solid"),
                _curve("with batch norm", tuned["norm"], 1, "solid"),
            ],
            y_range=(0, 100),
            note=(
                "Each at the learning rate that was best for it on the validation images. Mean over seeds; the band "
                "spans the lowest and the highest seed."
            ),
        )

    def _verdict(self, ratio: Interval, reached: int, plain: Sequence[Result]) -> Verdict:
        if not all(learnt(result, self.share) for result in plain):
            return Verdict.INCONCLUSIVE
        if ratio.low > self.worthwhile or reached < len(plain) / 2:
            return Verdict.NOT_REPRODUCED
        if reached == len(plain) and ratio.high < self.worthwhile:
            return Verdict.REPRODUCED
        return Verdict.INCONCLUSIVE

    def _names(self, group: str) -> list[str]:
        return [name for name, arm in self.arms().items() if arm.group == group]

    def _accuracy_effects(
        self,
        runs: Mapping[str, Mapping[int, Result]],
        tuned: Mapping[str, Mapping[int, Result]],
        seeds: Sequence[int],
    ) -> list[Effect]:
        """Paired differences of best validation accuracy and of test accuracy, in percentage points."""

        def points(name: str, treatment: Mapping[int, Result], control: Mapping[int, Result], what: str) -> Effect:
            values = ([arm[seed].number(what) for seed in seeds] for arm in (treatment, control))
            return Effect(name, paired(*values).scaled(100), "points")

        def last(arm: Mapping[int, Result], name: str) -> Effect:
            """The best of many looks is no accuracy to rely on where the curve jumps."""
            found = [arm[seed].numbers("validation")[-1] for seed in seeds]
            return Effect(f"Validation accuracy at the last look: {name}", interval(found).scaled(100), "%")

        effects = [
            points(f"Best validation accuracy at rate ×{rate:g}: batch norm minus plain", norm, plain, "best")
            for rate in self.norm_rates
            if rate in self.plain_rates
            for norm, plain in [(runs[Arm("norm", rate).name], runs[Arm("plain", rate).name])]
        ]
        best = "Best validation accuracy: "
        return [
            *effects,
            points(best + "batch norm (tuned) minus plain (tuned)", tuned["norm"], tuned["plain"], "best"),
            points(best + "batch norm (tuned) minus Adam (tuned)", tuned["norm"], tuned["adam"], "best"),
            points(
                best + "sigmoid with batch norm minus plain sigmoid (tuned)",
                tuned["norm sigmoid"],
                tuned["plain sigmoid"],
                "best",
            ),
            last(tuned["norm sigmoid"], "sigmoid with batch norm"),
            points("Test accuracy: batch norm (tuned) minus plain (tuned)", tuned["norm"], tuned["plain"], "test"),
        ]

    def _findings(
        self, runs: Mapping[str, Mapping[int, Result]], tuned: Mapping[str, Mapping[int, Result]]
    ) -> list[str]:
        chosen = {
            group: ", ".join(result.run.arm.removeprefix(f"{group} ") for result in tuned[group].values())
            for group in ("plain", "norm", "adam", "plain sigmoid")
        }
        diverged = [
            f"{name} ({count} of {len(arm)})"
            for name, arm in runs.items()
            if (count := sum(bool(result.values["diverged"]) for result in arm.values()))
        ]
        tests = [(result.number("test"), int(result.number("test images"))) for result in tuned["plain"].values()]
        accuracy, images = float(np.mean([test for test, _ in tests])), min(count for _, count in tests)
        error = standard_error(accuracy, images)
        return [
            f"Rates chosen on the validation split, seed by seed: plain {chosen['plain']}; batch norm "
            f"{chosen['norm']}; Adam {chosen['adam']}; plain sigmoid {chosen['plain sigmoid']}. Of equal accuracies "
            "the one that is reached first is chosen. "
            + ends(
                [
                    (self.arms()[result.run.arm].rate, rates)
                    for group, rates in (
                        ("plain", self.plain_rates),
                        ("norm", self.norm_rates),
                        ("adam", self.adam_rates),
                        ("plain sigmoid", self.sigmoid_rates),
                    )
                    for result in tuned[group].values()
                ]
            ),
            self._late(list(tuned["plain"].values())),
            "Runs whose loss or weights stopped being finite: " + ("; ".join(diverged) if diverged else "none") + ".",
            f"At {100 * accuracy:.1f}%, the mean of the tuned plain nets, the accuracy on one test split of {images:,} "
            f"images has a standard error of {error:.2f} points: in a single seed a difference below about "
            f"{2 * error:.1f} points means nothing.",
        ]

    def _late(self, plain: Sequence[Result]) -> str:
        """When the plain net is at its best, and what follows for the ratio of steps if that is late."""
        bests = [result.number("best") for result in plain]
        to_best = [_steps_to(result, best)[0] for result, best in zip(plain, bests, strict=True)]
        to_most = [_steps_to(result, 0.95 * best)[0] for result, best in zip(plain, bests, strict=True)]
        found = (
            f"The plain net is at its best after {_span(to_best)} of {self.steps} steps, by seed, and at 95% of that "
            f"accuracy after {_span(to_most)}"
        )
        if min(to_best) < 0.75 * self.steps:
            return f"{found}. Steps to 95% are compared as well."
        return (
            f"{found}. Its best comes so late that an arm with a higher plateau can pass it much earlier; steps to 95% "
            "of it, which depend less on this, are compared as well."
        )

    def _charts(
        self,
        runs: Mapping[str, Mapping[int, Result]],
        tuned: Mapping[str, Mapping[int, Result]],
        steps: Sequence[Effect],
    ) -> list[Chart]:
        relu = [("plain, tuned", tuned["plain"], 0, "solid"), ("Adam, no norm", tuned["adam"], 4, "dot")]
        colors = (6, 1, 3)
        for rate, color in zip(self.norm_rates, colors, strict=False):
            relu.append((f"norm ×{rate:g}", runs[Arm("norm", rate).name], color, "solid"))
        sigmoid = [
            ("plain sigmoid, tuned", tuned["plain sigmoid"], 0, "solid"),
            ("sigmoid with norm", tuned["norm sigmoid"], 1, "solid"),
        ]
        note = "Mean over seeds; the band spans the lowest and the highest seed."
        axes = ("training steps", "validation accuracy (%)")
        rows = [
            Row(
                effect.name.removeprefix("Steps, ").removesuffix(" against plain (tuned)")
                + (" (at least)" if effect.note else ""),
                effect.interval.estimate,
                effect.interval.low,
                effect.interval.high,
                2 if "Adam" in effect.name else 1,
            )
            for effect in steps
        ]
        curves = [_curve(name, arm, color, dash, so_far=True) for name, arm, color, dash in relu]
        revived = [_curve(name, arm, color, dash) for name, arm, color, dash in sigmoid]
        return [
            Curves(
                _sooner(self.norm_rates, steps[1:]),
                axes[0],
                "best validation accuracy so far (%)",
                curves,
                y_range=axis(curves),
                note="Mean over seeds. × is the learning rate, as a multiple of the base rate.",
            ),
            Intervals(
                "Steps to the best-tuned plain net's best accuracy, as a share of its own",
                "share of the plain net's steps",
                rows,
                1.0,
                "plain net",
                log_x=True,
                note="95% intervals over seeds.",
            ),
            Curves("Sigmoid: accuracy during training", *axes, revived, y_range=(0, 100), note=note),
            self._rates_chart(runs),
        ]

    def _rates_chart(self, runs: Mapping[str, Mapping[int, Result]]) -> Curves:
        lines = []
        for label, group, rates, color in (
            ("plain", "plain", self.plain_rates, 0),
            ("batch norm", "norm", self.norm_rates, 1),
        ):
            best = [[100 * r.number("best") for r in runs[Arm(group, rate).name].values()] for rate in rates]
            lines.append(
                Series(
                    label,
                    [rate * self.base_rate for rate in rates],
                    [float(np.mean(values)) for values in best],
                    color,
                    [min(values) for values in best],
                    [max(values) for values in best],
                    markers=True,
                )
            )
        ticks = [rate * self.base_rate for rate in (min(self.plain_rates), *self.norm_rates)]
        return Curves(
            "Which learning rates are usable",
            "learning rate",
            "best validation accuracy (%)",
            lines,
            log_x=True,
            y_range=(0, 100),
            x_ticks=ticks,
            note="Mean over seeds; the band spans the lowest and the highest seed.",
        )


def _sooner(rates: Sequence[float], steps: Sequence[Effect]) -> str:
    """A title that names the rates at which batch norm needs fewer steps; the effects begin with those of the rates."""
    # A rate at which some seed never got there has a ratio that is too low: it is not called sooner.
    fast = [
        f"×{rate:g}" for rate, effect in zip(rates, steps, strict=False) if effect.interval.high < 1 and not effect.note
    ]
    if not fast:
        return "ReLU: accuracy during training"
    *most, last = fast
    return f"ReLU: with batch norm at {', '.join(most) + ' and ' if most else ''}{last} accuracy comes sooner"


def _span(steps: Sequence[float]) -> str:
    low, high = min(steps), max(steps)
    return f"{low:.0f}" if low == high else f"{low:.0f} to {high:.0f}"


def _tuned(runs: Mapping[str, Mapping[int, Result]], names: Sequence[str], seed: int) -> Result:
    """The run of the rate with the best validation accuracy; of equals, the one that got there first."""
    return max(
        (runs[name][seed] for name in names),
        key=lambda result: (result.number("best"), -_steps_to(result, result.number("best"))[0]),
    )


def _steps_to(result: Result, target: float) -> tuple[float, bool]:
    """Steps until the validation accuracy first reaches the target, or all steps and False."""
    steps = result.numbers("steps")
    for step, value in zip(steps, result.numbers("validation"), strict=True):
        if value >= target:
            return step, True
    return steps[-1], False


def _curve(name: str, arm: Mapping[int, Result], color: int, dash: str, *, so_far: bool = False) -> Series:
    """Mean over seeds; or of the best so far, without a band, where several lines would hide each other."""
    steps = next(iter(arm.values())).numbers("steps")
    values = 100 * np.array([result.numbers("validation") for result in arm.values()])
    if so_far:
        mean = np.maximum.accumulate(values, axis=1).mean(axis=0)
        return Series(name, steps, mean.tolist(), color, dash=dash)
    low, high = values.min(axis=0).tolist(), values.max(axis=0).tolist()
    return Series(name, steps, values.mean(axis=0).tolist(), color, low, high, dash)


CLAIM = Convergence()
