"""What batch norm mainly buys is a larger usable learning rate: how much larger, and what is left without it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean
from typing import ClassVar

from torch import nn

from ...report.chart import Curves, Figure, Intervals, Panels, Row, Series
from ...report.number import spoken
from ..apparatus.usable import learning_below, search
from ..arms import derive
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
from ..learning import LEARNT, baseline, learnt, shortfall
from ..search import ends
from ..statistics import Interval, interval, paired
from ..subjects import Stack, Subject
from ..training import Recipe, train

__all__ = ["CLAIM", "LearningRate"]

_MAIN = "network"
_ARMS = {"norm": "with batch norm", "plain": "without"}
_SAME = "same"  # batch norm at the plain net's best rate
_TEST = "Test accuracy"

# Most convolutions are on small images, so that depth costs little.
_EIGHT, _TWENTY = (Stack(((8, 2), (8, 2), (16, 2), *[(16, 1)] * (depth - 3))) for depth in (8, 20))


@dataclass(frozen=True, kw_only=True)
class LearningRate(SubjectClaim):
    """Searches the largest usable learning rate with and without batch norm.

    Args:
        subject: The network that decides.
        deeper: Others that the same is measured for, where the network is the study's own.
        top: The largest rate of the grid.
        rungs: Rates in a tenfold of it.
        count: Rates of the grid.
        stride: How many rates down the scan from the top goes at a time.
        steps: Updates of a run that tells whether a rate is usable.
        trained: Updates of a run whose accuracy is compared.
        below: Rungs below the largest usable rate that these are searched over.
        norm: False builds every arm without batch norm: the effect removed.
        worthwhile: The factor that is worth having.
    """

    subject: Subject = _EIGHT
    deeper: tuple[Stack, ...] = (_TWENTY,)
    top: float = 10.0
    rungs: int = 8
    count: int = 29
    stride: int = 4
    steps: int = 120
    trained: int = 200
    below: tuple[int, ...] = (2, 4, 8, 12)
    norm: bool = True
    worthwhile: float = 2.0

    arms_of_subject: ClassVar[tuple[str, ...]] = ("batch", "none")

    about: ClassVar[About] = About(
        id="learning-rate",
        topic=Topic.DOES,
        title="With batch norm a network learns at larger learning rates",
        statement=(
            "The largest learning rate at which a network still learns is several times larger with batch norm. The "
            "paper goes further: this is what batch norm mainly buys, and faster training and better accuracy come "
            "from it. What is left of its advantage at the plain net's rate is measured below and is no part of the "
            "verdict."
        ),
        formula=(
            r"\text{factor} = \frac{\eta_{\max}(\text{with batch norm})}{\eta_{\max}(\text{without})}, \qquad "
            r"\eta_{\max} = \max\{\eta : \text{the network learns at rate } \eta\}"
        ),
        source=(
            "Bjorck, Gomes, Selman & Weinberger 2018, Understanding Batch Normalization (arXiv 1806.02375), abstract"
        ),
        paper=None,
        setup=(
            "SGD with momentum 0.9 and batches of 60. A rate is usable if 120 updates at it, not decayed, end with the "
            "network learning: every loss finite, and the mean loss in evaluation mode on the first 1,200 training "
            "images (all where there are fewer) a tenth or more below that of knowing nothing but how frequent each "
            "class is (on the default data below 2.07, where guessing gives 2.30); where few labels differ, by three "
            "standard errors of such guessing at least. Batch norm is so judged with its running statistics, as it is "
            "used after training. The grid has 8 rates in each tenfold, from 10 down to 0.0032. Every fourth is tried "
            "from the top until one is usable; bisection then finds the largest usable one between it and the one "
            "above. Too small a rate is not usable either, as the network learns too little in these steps, and usable "
            "rates need not be without gaps: what is found is the upper end of a range. Both arms have the same split, "
            "initial weights and batches; where batch norm is left out, only its shift stays. Then both are trained "
            "for 200 steps, the rate falling in a straight line to 0, at 1.8, 3.2, 10 and 32 times less than their "
            "largest usable rate; in each seed the one with the best validation accuracy is taken, and batch norm is "
            "also trained at the rate that was best for the plain net. The test split is used once a run, with the "
            "weights that were best on the validation split, and never in the search for usable rates. The study's own "
            "networks are two, of 8 and of 20 convolutions, and the first decides. A pilot (seeds 100 to 102 of the "
            "default data) set the grids, the number of updates and the depths: 20 layers without batch norm hardly "
            "learnt in the time there is, and 32 at no rate tried from 0.001 to 0.3, so that there a factor means "
            "nothing. After a first study on these seeds, one in which an arm learns at no rate no longer counts with "
            "the lowest rate of the grid, and what comes with the larger rate is compared with half; no verdict "
            "changed by that. That study judged by the mean loss of the last 20 batches in training mode, where batch "
            "norm has the statistics of the very batch, which favoured it: the factor was 28 (12 to 64), reproduced, "
            "but at the largest rates so found, 18% to 43% of the validation images were classified rightly in its "
            "first three seeds, and in two of them the loss in evaluation mode was above that of guessing. So "
            "evaluation mode decides now, in both arms; this made the factor smaller, and the verdict stayed."
        ),
        metric="largest usable learning rate with batch norm over that without",
        direction="larger with batch norm, by a factor above 2",
        pass_rule=(
            "By the 95% interval of the factor over seeds, paired, in logarithms. Reproduced: it lies above 2. Not "
            "reproduced: it lies below 2, or with batch norm more than half of the networks learn at no rate tried, "
            "and without all do at some. Otherwise inconclusive; so too if in one of the seeds an arm learns at no "
            "rate tried, since then there is no factor, or if the best-tuned net of an arm has not learnt. Where a "
            "largest usable rate is the top of the grid, the factor is only a bound, and a bound decides nothing that "
            "it does not prove. " + LEARNT
        ),
        control="The arms named batch norm are built without it.",
        budget=230,
        tier="standard",
        smallest=60,
    )

    def without_effect(self) -> LearningRate:
        """No arm has batch norm."""
        return replace(self, norm=False)

    def on(self, subject: Subject) -> LearningRate:
        """The same claim about another network, alone."""
        return replace(self, subject=subject, deeper=())

    def _networks(self) -> dict[str, Subject]:
        return {_MAIN: self.subject} | {_layers(other): other for other in self.deeper}

    def _grid(self) -> list[float]:
        """From the top down."""
        return [self.top * 10 ** (-place / self.rungs) for place in range(self.count)]

    def plan(self, seeds: Sequence[int], data: Source | None) -> list[Run]:
        """One run a network and seed: which rates it tries depends on what came before."""
        return [Run(self.about.id, arm, seed, data) for seed in seeds for arm in self._networks()]

    def execute(self, run: Run, report: Report) -> dict[str, Value]:
        """Searches the largest usable rates; of the network that decides also the best ones."""
        parts = split(run.source, run.seed)
        network, grid = self._networks()[run.arm], self._grid()
        values: dict[str, Value] = {
            "limit": learning_below(parts.train[1]),
            **baseline(parts),
        }
        tops: dict[str, float | None] = {}
        for half, (arm, word) in enumerate(_ARMS.items()):

            def told(done: float, note: str, half: int = half, word: str = word) -> None:
                report(0.3 * (half + min(done, 1.0)), f"{word}, {note}")

            found = search(
                partial(self._build, network, arm, parts, run.seed),
                parts,
                grid,
                stride=self.stride,
                steps=self.steps,
                seed=run.seed,
                report=told,
            )
            tops[arm] = found.largest
            values |= {
                f"{arm}: rates tried": list(found.rates),
                f"{arm}: losses": list(found.losses),
                f"{arm}: learns": found.largest is not None,
                f"{arm}: largest": grid[-1] if found.largest is None else found.largest,
            }
        return values | (self._tuned(tops, parts, run.seed, report) if run.arm == _MAIN else {})

    def _tuned(self, tops: Mapping[str, float | None], parts: Split, seed: int, report: Report) -> dict[str, Value]:
        """Accuracies of both arms at their best rate, and of batch norm at the plain net's; 0 where there is none."""
        values: dict[str, Value] = {}

        def trained(arm: str, rates: Sequence[float]) -> float:
            report(0.6 + 0.1 * len(values) / 4, f"{_ARMS.get(arm, _ARMS['norm'])}, accuracy")
            best, chosen = None, 0.0
            for rate in rates:
                recipe = Recipe(rate, steps=self.trained, every=max(1, self.trained // 5), decay=True)
                model = self._build(self.subject, arm, parts, seed)
                history = train(model, parts, recipe, seed=seed, report=lambda done, note: None)
                if best is None or max(history.validation) > max(best.validation):
                    best, chosen = history, rate
            values.update(
                {
                    f"{arm}: searched": list(rates),
                    f"{arm}: rate": chosen,
                    f"{arm}: best": max(best.validation) if best else 0.0,
                    f"{arm}: test": best.test if best else 0.0,
                }
            )
            return chosen

        chosen = 0.0
        for arm, top in tops.items():
            chosen = trained(arm, [] if top is None else [top * 10 ** (-down / self.rungs) for down in self.below])
        # The plain net comes last, so what was chosen is its own.
        trained(_SAME, [chosen] if chosen else [])
        return values

    def _build(self, network: Subject, arm: str, parts: Split, seed: int) -> nn.Module:
        return derive(network.build(parts, seed), "batch" if self.norm and arm != "plain" else "none")

    def conclude(self, results: Sequence[Result]) -> Conclusion:
        """Compares the largest usable rates, paired by seed."""
        runs = {arm: list(found.values()) for arm, found in by_arm(results).items()}
        main = runs[_MAIN]
        factors = {arm: factor for arm in self._networks() if (factor := self._factor(arm, runs[arm]))}
        factor = factors.get(_MAIN)
        verdict = self._verdict(factor, main)
        reason = "There is no seed in which the network learns at some rate both with batch norm and without."
        if factor:
            span = factor.interval
            reason = (
                f"With batch norm the largest usable learning rate is {spoken(span.estimate)} times that without "
                f"({spoken(span.low)} to {spoken(span.high)}): {_spread(main, 'norm')} against "
                f"{_spread(main, 'plain')}."
            )
            if factor.note:
                reason += f" Note: {factor.note}."
        if lacking := _lacking(main):
            reason += f" But {lacking}."
        effects = [*factors.values(), *([] if _silent(main) else _accuracies(main))]
        charts = self._charts(runs, factors, effects, verdict)
        return Conclusion(verdict, reason, effects, charts, self._findings(runs, effects))

    def _factor(self, arm: str, runs: Sequence[Result]) -> Effect | None:
        """Over the seeds in which both arms learn at some rate; None where there is no such seed."""
        both = [result for result in runs if not _silent([result])]
        if not both:
            return None
        logs = [math.log(result.number("norm: largest") / result.number("plain: largest")) for result in both]
        notes = []
        if len(both) < len(runs):
            notes.append(f"only of the {len(both)} of {len(runs)} seeds in which both learn at a rate tried")
        for name, bound in (("norm", "at least"), ("plain", "at most")):
            if count := self._at_top(both, name):
                notes.append(f"{bound}, as {_ARMS[name]} {count} of {len(both)} are at the top of the grid")
        name = f"Largest usable learning rate, {self._label(arm)}: with batch norm over without"
        return Effect(name, interval(logs).exponential(), "×", "; ".join(notes), ratio=True)

    def _verdict(self, factor: Effect | None, runs: Sequence[Result]) -> Verdict:
        if _silent(runs, "norm") > len(runs) / 2 and not _silent(runs, "plain"):
            return Verdict.NOT_REPRODUCED
        if factor is None or _lacking(runs):
            return Verdict.INCONCLUSIVE
        if factor.interval.low > self.worthwhile and not self._at_top(runs, "plain"):
            return Verdict.REPRODUCED
        if factor.interval.high <= self.worthwhile and not self._at_top(runs, "norm"):
            return Verdict.NOT_REPRODUCED
        return Verdict.INCONCLUSIVE

    def _at_top(self, runs: Sequence[Result], arm: str) -> int:
        return sum(result.number(f"{arm}: largest") >= self.top for result in runs)

    def _label(self, arm: str) -> str:
        if arm == _MAIN:
            return _layers(self.subject) if isinstance(self.subject, Stack) else "your network"
        return arm

    def _findings(self, runs: Mapping[str, Sequence[Result]], effects: Sequence[Effect]) -> list[str]:
        main = runs[_MAIN]
        found = [
            "Largest usable rates, seed by seed: "
            + "; ".join(
                f"{self._label(arm)}, {word}: {_listed(found, name)}"
                for arm, found in runs.items()
                for name, word in _ARMS.items()
            )
            + f". The grid's step is a factor of {10 ** (1 / self.rungs):.2f}."
        ]
        gains = [effect.interval for effect in effects if effect.name.startswith(_TEST)]
        if gains and not _lacking(main):
            found.append(_what_is_left(main, *gains))
            accuracies = ", ".join(
                f"{100 * fmean(result.number(f'{arm}: test') for result in main):.1f}% {word}"
                for arm, word in (
                    ("plain", "without it"),
                    (_SAME, "with it at the plain net's best rate"),
                    ("norm", "with it at its own"),
                )
            )
            found.append(
                f"Test accuracy after {self.trained} steps, {self._label(_MAIN)}, mean over seeds: {accuracies}."
            )
            chosen = [
                (result.number(f"{arm}: rate"), result.numbers(f"{arm}: searched")) for arm in _ARMS for result in main
            ]
            rates = "; ".join(
                f"{word} " + ", ".join(spoken(result.number(f"{arm}: rate"), 2) for result in main)
                for arm, word in _ARMS.items()
            )
            found.append(f"Rates chosen on the validation split, seed by seed: {rates}. {ends(chosen)}")
        for arm, others in runs.items():
            if arm != _MAIN and (lost := _silent(others, "plain")):
                found.append(
                    f"With {arm}, {lost} of {len(others)} plain nets learn at no rate tried in {self.steps} steps, "
                    f"and of those with batch norm {_silent(others, 'norm')}: where one does not, there is no factor."
                )
        return found

    def _charts(
        self,
        runs: Mapping[str, Sequence[Result]],
        factors: Mapping[str, Effect],
        effects: Sequence[Effect],
        verdict: Verdict,
    ) -> list[Figure]:
        panels = [_losses_chart(self._label(arm), found) for arm, found in runs.items()]
        note = (
            f"A point is a run of {self.steps} steps, of any seed, judged on training images in evaluation mode; those "
            "below the dashed line have learnt. Losses above the upper edge, and those that are no number, are "
            "drawn at it."
        )
        title = (
            "With batch norm the network still learns at rates at which it does not without"
            if verdict is Verdict.REPRODUCED
            else "At which learning rates the network learns, with batch norm and without"
        )
        gains = [effect for effect in effects if effect.name.startswith(_TEST)]
        rows = [
            Row(effect.name.removeprefix(_TEST).lstrip(" ,").removeprefix("of "), *_edges(effect.interval), color)
            for color, effect in enumerate(gains, 1)
        ]
        charts: list[Figure] = [
            Panels(title, panels, note=note) if len(panels) > 1 else replace(panels[0], title=title, note=note)
        ]
        if factors:
            charts.append(
                Intervals(
                    "Largest usable learning rate with batch norm, as a multiple of that without",
                    "factor",
                    [
                        Row(self._label(arm) + (" *" if effect.note else ""), *_edges(effect.interval))
                        for arm, effect in factors.items()
                    ],
                    1.0,
                    "the same",
                    log_x=True,
                    note="; ".join(
                        [
                            f"95% intervals over seeds. The claim needs more than {self.worthwhile:g}",
                            *(f"* {effect.note}" for effect in factors.values() if effect.note),
                        ]
                    )
                    + ".",
                )
            )
        if rows:
            charts.append(
                Intervals(
                    "What batch norm adds to test accuracy at its own best rate, and at the plain net's",
                    "percentage points",
                    rows,
                    0.0,
                    "no difference",
                    note="95% intervals over seeds.",
                )
            )
        return charts


def _layers(network: Stack) -> str:
    return f"{len(network.layers)} layers"


def _silent(runs: Sequence[Result], *arms: str) -> int:
    """How many learn at no rate tried, in one of these arms or in any."""
    return sum(not all(result.values[f"{arm}: learns"] for arm in arms or _ARMS) for result in runs)


def _lacking(runs: Sequence[Result]) -> str:
    """Why the network that decides says nothing; empty where it does."""
    for arm, word in _ARMS.items():
        if lost := _silent(runs, arm):
            return f"{word} {lost} of {len(runs)} networks learn at no rate tried, so there is no factor"
    for result in runs:
        for arm, word in _ARMS.items():
            if not learnt(result, name=f"{arm}: best"):
                return f"a network {word} stayed at {shortfall(result, name=f'{arm}: best')}"
    return ""


def _difference(runs: Sequence[Result], first: str, second: str, what: str = "test") -> Interval:
    arms = ([result.number(f"{arm}: {what}") for result in runs] for arm in (first, second))
    return paired(*arms).scaled(100)


def _accuracies(runs: Sequence[Result]) -> list[Effect]:
    """What batch norm adds to the accuracy at its own best rate and at the plain net's."""
    own, same = "each at its best rate", "both at the plain net's best rate"
    arms = {own: "norm", same: _SAME}
    return [
        *(
            Effect(f"{_TEST}, {how}: batch norm minus plain", _difference(runs, arm, "plain"), "points")
            for how, arm in arms.items()
        ),
        Effect(
            f"{_TEST} of batch norm: its own best rate minus the plain net's",
            _difference(runs, "norm", _SAME),
            "points",
        ),
        *(
            Effect(
                f"Best validation accuracy, {how}: batch norm minus plain",
                _difference(runs, arm, "plain", "best"),
                "points",
            )
            for how, arm in arms.items()
        ),
    ]


def _what_is_left(runs: Sequence[Result], own: Interval, same: Interval, rest: Interval) -> str:
    """How much of batch norm's advantage comes with the larger rate, said only as far as the intervals go."""
    told = (
        f"Each at its best rate, batch norm adds {own.spoken()} points of test accuracy. At the plain net's best rate "
        f"it adds {same.spoken()}; to go on to its own best rate adds {rest.spoken()}."
    )
    if own.low <= 0:
        return f"{told} That it adds anything at its own rate is not sure, so there is nothing to explain."
    # What comes with the rate, against what is there without: above 0 if it is more than half.
    mainly = interval(
        [
            result.number("norm: test") - 2 * result.number(f"{_SAME}: test") + result.number("plain: test")
            for result in runs
        ]
    )
    if mainly.low > 0:
        return f"{told} So most of it comes with the larger rate, as the paper has it."
    if mainly.high < 0:
        return f"{told} So most of it is there at the plain net's rate: here it is not mainly the larger rate."
    return f"{told} Whether most of it comes with the larger rate, as the paper has it, these seeds do not tell."


def _spread(runs: Sequence[Result], arm: str) -> str:
    rates = [result.number(f"{arm}: largest") for result in runs]
    low, high = spoken(min(rates), 2), spoken(max(rates), 2)
    return low if low == high else f"{low} to {high}"


def _listed(runs: Sequence[Result], arm: str) -> str:
    return ", ".join(
        spoken(result.number(f"{arm}: largest"), 2) if result.values[f"{arm}: learns"] else "none" for result in runs
    )


def _losses_chart(label: str, runs: Sequence[Result]) -> Curves:
    limit = max(result.number("limit") for result in runs)
    upper = 2 * limit if limit > 0 else 1.0
    lines = []
    for arm, color in (("plain", 0), ("norm", 1)):
        rates = [rate for result in runs for rate in result.numbers(f"{arm}: rates tried")]
        losses = [min(loss, upper) for result in runs for loss in result.numbers(f"{arm}: losses")]
        lines.append(Series(_ARMS[arm], rates, losses, color, markers=True, line=False))
    tried = [rate for line in lines for rate in line.x]
    lines.append(Series("learns below", [min(tried), max(tried)], [limit, limit], 0, dash="dash"))
    return Curves(label, "learning rate", "loss on training images", lines, log_x=True, y_range=(0.0, 1.02 * upper))


def _edges(span: Interval) -> tuple[float, float, float]:
    return span.estimate, span.low, span.high


CLAIM = LearningRate()
