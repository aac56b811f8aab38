"""Initial weights of any scale: does batch norm make training insensitive to it?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...report.chart import Curves, Figure, Intervals, Row, Series
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
from ..data import Source, split
from ..learning import LEARNT, baseline, learnt, shortfall
from ..search import ends
from ..statements import Case, joined, rank
from ..statistics import Interval, interval, paired
from ..subjects import Stack, Subject
from ..training import History, Recipe, train

__all__ = ["CLAIM", "Initialisation", "unscaled"]

_ARMS = {"norm": "with batch norm", "plain": "without"}
_WORDS = {Verdict.REPRODUCED: "holds", Verdict.NOT_REPRODUCED: "is refuted", Verdict.INCONCLUSIVE: "is open"}
_FOUR = Stack(((8, 2), (16, 2), (16, 2), (16, 1)))

# A change of the outputs, as a share of them, that counts as none: eps leaves far less, and a weight that counts
# changes them by as much as they are.
_SAME = 0.01


def unscaled(model: nn.Module, images: Tensor) -> list[str]:
    """Names of the weights whose scale batch norm takes out: doubled, they leave the outputs in training as they are.

    Found by trying, since where a norm stands in a network of the user's cannot be read off the order of its modules.
    While a last layer or a γ is all zero, as some begin, nothing before it moves the outputs: for the trial it is drawn
    at random. A weight that the outputs do not depend on is none of them. The model's running statistics change.
    """

    def outputs() -> Tensor:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)  # the same dropout each time
            out: Tensor = model.train()(images)
            return out

    def drawn(weight: Tensor) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            # None that a run has: the numbers drawn would be those that its network began with.
            torch.manual_seed(0xD1FFE7)
            return torch.randn_like(weight) / (weight[0].numel() ** 0.5 if weight.dim() > 1 else 1.0)

    # What is added, β or a bias, holds no output still, and is as it begins: a bias before a ReLU changes the answer.
    silent = [
        weight
        for name, weight in model.named_parameters()
        if name.rpartition(".")[2] != "bias" and not bool(weight.any())
    ]
    for weight in silent:
        weight.data = drawn(weight.data)
    usual, names = outputs(), []

    def same() -> bool:
        return float((outputs() - usual).norm()) <= _SAME * float(usual.norm())

    for name, weight in model.named_parameters():
        if weight.dim() < 2:  # γ, β and biases
            continue
        before = weight.data
        weight.data = 2 * before
        if same():
            weight.data = drawn(before)
            if not same():
                names.append(name)
        weight.data = before
    for weight in silent:
        weight.data = torch.zeros_like(weight.data)
    return names


@dataclass(frozen=True, kw_only=True)
class Initialisation(SubjectClaim):
    """Trains a network from initial weights of several scales, with batch norm and without.

    Args:
        subject: The network.
        scales: Factors on the initial weights; 1, the usual one, is among them.
        rates: Learning rates that each arm is searched over at scale 1.
        again: Multiples of the chosen rate that are tried at the arm's worst scale besides.
        steps: Updates of each run.
        norm: False builds every arm without batch norm: the effect removed.
        part: Of what guessing leaves to be learnt, what a drop in accuracy is compared with.
    """

    subject: Subject = _FOUR
    scales: tuple[float, ...] = (0.001, 0.01, 0.1, 1.0, 10.0)
    rates: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0)
    again: tuple[float, ...] = (0.1, 10.0, 100.0)
    steps: int = 200
    norm: bool = True
    part: float = 0.1

    arms_of_subject: ClassVar[tuple[str, ...]] = ("batch", "none")

    about: ClassVar[About] = About(
        id="initialisation",
        topic=Topic.DOES,
        title="Batch norm makes training insensitive to the scale of the initial weights",
        statement=(
            "Without batch norm the initial weights must have the right scale, or the signal fades or explodes from "
            "layer to layer. With it, it is said, their scale does not matter. These are two statements, and each is "
            "judged: (1) with batch norm accuracy hardly depends on the scale; (2) without it, it depends on it far "
            "more."
        ),
        formula=(
            r"\text{drop} = A(1) - \min_{a} A(a), \qquad W_{\text{initial}} = a\,W, \qquad "
            r"a \in \{10^{-3}, 10^{-2}, 10^{-1}, 1, 10\}"
        ),
        symbols="Here A(a) is the accuracy after training from initial weights times a.",
        source=(
            "Ioffe & Szegedy 2015 (arXiv 1502.03167), Section 1, on how gradients depend on the scale of weights and "
            "of their initial values; that training becomes insensitive to it is common in tutorials"
        ),
        paper=None,
        setup=(
            "The initial weights are multiplied by 0.001, 0.01, 0.1, 1 or 10: all those whose scale batch norm takes "
            "out, which doubled leave the outputs of the network with batch norm in training the same to 1% (in the "
            "study's own, the convolutions' weights, and not those of the last layer). For this trial alone a weight "
            "or a γ that begins as zero is drawn at random, and a weight counts only if the outputs depend on it; both "
            "came after a first study and change nothing in the study's own network. The same ones are multiplied "
            "where batch norm is left out; of a norm only its shift stays there. SGD with momentum 0.9, batches of "
            "60, 200 steps, the learning rate falling in a straight line to 0. Each arm is searched over the rates "
            "0.03, 0.1, 0.3 and 1 at scale 1: in each seed, the rate with the best validation accuracy. It is "
            "then kept at all scales, as it would be by someone whose weights happen to have another scale. At the "
            "arm's worst scale the search is made again, over 1/10, 1, 10 and 100 times that rate; what this "
            "recovers is measured and is no part of the verdict. Both arms of a seed have the same split, initial "
            "weights and batch order. The test split is used once a run, with the weights that were best on the "
            "validation split; a run that stopped being finite before it was first looked at counts with 0%. A pilot "
            "(seeds 100 and 101 of the default data) set the rates; it also showed that statement 1 "
            "would hardly hold at scale 10, and it stays as it is told."
        ),
        metric=(
            "test accuracy at scale 1 minus that at the worst of the scales, which is the one with the lowest "
            "validation accuracy"
        ),
        direction="with batch norm a small drop; without it a much larger one",
        pass_rule=(
            "By 95% intervals over seeds, against a limit of a tenth of what guessing leaves (100% minus the share of "
            "the most frequent class; 9 points on the default data). Statement 1: the drop with batch norm is below "
            "the limit. Statement 2: the drop without it is larger than that with it by more than the limit, paired "
            "by seed. A statement holds if its interval lies on the stated side, and is refuted if it lies wholly on "
            "the other. Reproduced: both hold. Not reproduced: one is refuted. Otherwise inconclusive; so too if at "
            "scale 1 a network of an arm has not learnt, or the network has no weight whose scale batch norm takes "
            "out. " + LEARNT
        ),
        control="The arm named batch norm is built without it; what is multiplied stays the same.",
        budget=140,
        tier="standard",
        smallest=60,
    )

    def without_effect(self) -> Initialisation:
        """No arm has batch norm."""
        return replace(self, norm=False)

    def plan(self, seeds: Sequence[int], data: Source | None) -> list[Run]:
        """One run an arm and seed: the rate that is kept at all scales depends on the search at the first."""
        return [Run(self.about.id, arm, seed, data) for seed in seeds for arm in _ARMS]

    def execute(self, run: Run, report: Report) -> dict[str, Value]:
        """Searches the rate at scale 1, trains at all scales, and searches again at the worst."""
        parts = split(run.source, run.seed)
        names = unscaled(self.subject.build(parts, run.seed), parts.train[0][: Recipe(1.0).batch_size])
        total, done = len(self.rates) + len(self.scales) - 1 + len(self.again), 0

        def trained(scale: float, rate: float) -> History:
            nonlocal done
            report(done / total, f"scale {scale:g}, rate {rate:g}")
            done += 1
            model = self.subject.build(parts, run.seed)
            for name, weight in model.named_parameters():
                if name in names:
                    weight.data *= scale
            model = derive(model, "batch" if self.norm and run.arm == "norm" else "none")
            recipe = Recipe(rate, steps=self.steps, every=max(1, self.steps // 2), decay=True)
            return train(model, parts, recipe, seed=run.seed, report=lambda done, note: None)

        usual = {rate: trained(1.0, rate) for rate in self.rates}
        rate = max(usual, key=lambda rate: max(usual[rate].validation))
        found = {scale: usual[rate] if scale == 1 else trained(scale, rate) for scale in self.scales}
        validation = [max(found[scale].validation) for scale in self.scales]
        worst = self.scales[validation.index(min(validation))]
        searched = {rate: found[worst]} | {rate * factor: trained(worst, rate * factor) for factor in self.again}
        anew = max(searched, key=lambda rate: max(searched[rate].validation))
        return {
            "weights scaled": len(names),
            "rate": rate,
            "validation": validation,
            "test": [found[scale].test for scale in self.scales],
            "best": max(usual[rate].validation),
            "worst scale": worst,
            "rate anew": anew,
            "validation anew": max(searched[anew].validation),
            "test anew": searched[anew].test,
            **baseline(parts),
        }

    def conclude(self, results: Sequence[Result]) -> Conclusion:
        """Judges both statements."""
        arms = {arm: list(found.values()) for arm, found in by_arm(results).items()}
        drops = {arm: [self._drop(result) for result in runs] for arm, runs in arms.items()}
        limit = 100 * self.part * min(1 - result.number("guessing") for result in results)
        cases = [
            Case(
                "Drop of test accuracy to the worst scale, with batch norm",
                drops["norm"],
                limit,
                False,
                False,
            ),
            Case(
                "Drop of test accuracy to the worst scale, without batch norm minus with it",
                [plain - norm for plain, norm in zip(drops["plain"], drops["norm"], strict=True)],
                limit,
                True,
                False,
            ),
        ]
        missing = self._missing(arms)
        verdict = Verdict.INCONCLUSIVE if missing else joined([case.verdict for case in cases])
        # The statement that decides comes first.
        effects = [
            Effect(case.name, case.interval, "points", f"statement {cases.index(case) + 1}")
            for case in sorted(cases, key=lambda case: rank(case.verdict))
        ]
        effects.append(
            Effect("Drop of test accuracy to the worst scale, without batch norm", interval(drops["plain"]), "points")
        )
        left = {arm: [self._drop(result, anew=True) for result in runs] for arm, runs in arms.items()}
        effects += [
            Effect(
                f"Drop of test accuracy to the worst scale, {word}, the rate searched again there",
                interval(left[arm]),
                "points",
            )
            for arm, word in _ARMS.items()
        ]
        effects += [
            Effect(f"Test accuracy at scale {scale:g}, with batch norm minus without", gap, "points")
            for scale, gap in self._gaps(arms).items()
        ]
        spans = [case.interval for case in cases]
        reason = (
            f"From scale 1 to the worst scale, test accuracy drops by {spans[0].spoken()} points with batch norm and "
            f"by {interval(drops['plain']).spoken()} without it; the limit is {limit:.2g}. "
            f"Statement 1 {_WORDS[cases[0].verdict]}; statement 2 {_WORDS[cases[1].verdict]}.{missing}"
        )
        return Conclusion(verdict, reason, effects, self._charts(arms, drops, left), self._findings(arms))

    def _at(self, result: Result, scale: float, what: str = "test") -> float:
        return result.numbers(what)[self.scales.index(scale)]

    def _drop(self, result: Result, *, anew: bool = False) -> float:
        """In percentage points."""
        there = result.number("test anew") if anew else self._at(result, result.number("worst scale"))
        return 100 * (self._at(result, 1.0) - there)

    def _missing(self, arms: Mapping[str, Sequence[Result]]) -> str:
        """Why nothing can be said, as a sentence; empty where it can."""
        for arm, word in _ARMS.items():
            for result in arms[arm]:
                if not result.number("weights scaled"):
                    return " But the network has no weight whose scale batch norm takes out."
                if not learnt(result):
                    return f" But at scale 1 a network {word} stayed at {shortfall(result)}."
        return ""

    def _gaps(self, arms: Mapping[str, Sequence[Result]]) -> dict[float, Interval]:
        return {
            scale: paired(*([self._at(result, scale) for result in arms[arm]] for arm in _ARMS)).scaled(100)
            for scale in self.scales
        }

    def _findings(self, arms: Mapping[str, Sequence[Result]]) -> list[str]:
        found = []
        for arm, word in _ARMS.items():
            runs = arms[arm]
            means = ", ".join(
                f"{100 * fmean(self._at(result, scale) for result in runs):.1f}% at {scale:g}" for scale in self.scales
            )
            learning = ", ".join(
                f"{sum(self._learnt(result, scale) for result in runs)} at {scale:g}" for scale in self.scales
            )
            found.append(
                f"Test accuracy {word}, mean over seeds, by scale: {means}. Networks that have learnt, of "
                f"{len(runs)}: {learning}."
            )
        for arm, word in _ARMS.items():
            worst = ", ".join(f"{result.number('worst scale'):g}" for result in arms[arm])
            factors = ", ".join(f"{result.number('rate anew') / result.number('rate'):g}" for result in arms[arm])
            before, after = (
                100 * fmean(values)
                for values in (
                    [self._at(result, result.number("worst scale")) for result in arms[arm]],
                    [result.number("test anew") for result in arms[arm]],
                )
            )
            found.append(
                f"The worst scale {word}, seed by seed: {worst}. The rate searched again there changes the mean test "
                f"accuracy from {before:.1f}% to {after:.1f}%, at these multiples of the rate of scale 1: {factors}."
            )
        rates = {arm: ", ".join(f"{result.number('rate'):g}" for result in runs) for arm, runs in arms.items()}
        chosen = "; ".join(f"{word} {rates[arm]}" for arm, word in _ARMS.items())
        searched = [(result.number("rate"), self.rates) for runs in arms.values() for result in runs]
        found.append(f"Rates chosen on the validation split at scale 1, seed by seed: {chosen}. {ends(searched)}")
        return found

    def _learnt(self, result: Result, scale: float) -> bool:
        values = {**result.values, "best": self._at(result, scale, "validation")}
        return learnt(replace(result, values=values))

    def _charts(
        self,
        arms: Mapping[str, Sequence[Result]],
        drops: Mapping[str, Sequence[float]],
        left: Mapping[str, Sequence[float]],
    ) -> list[Figure]:
        lines = []
        for arm, color in (("plain", 0), ("norm", 1)):
            by_scale = [[100 * self._at(result, scale) for result in arms[arm]] for scale in self.scales]
            lines.append(
                Series(
                    _ARMS[arm],
                    self.scales,
                    [fmean(values) for values in by_scale],
                    color,
                    [min(values) for values in by_scale],
                    [max(values) for values in by_scale],
                    markers=True,
                )
            )
        learning = {
            arm: sum(all(self._learnt(result, scale) for result in runs) for scale in self.scales)
            for arm, runs in arms.items()
        }
        title = (
            f"With batch norm the network learns at {learning['norm']} of {len(self.scales)} scales of its initial "
            f"weights in every seed, without it at {learning['plain']}"
        )
        rows = []
        for arm, color in (("norm", 1), ("plain", 0)):
            for name, values in (("same rate", drops[arm]), ("rate searched again", left[arm])):
                span = interval(values)
                rows.append(Row(f"{_ARMS[arm]}, {name}", span.estimate, span.low, span.high, color))
        return [
            Curves(
                title,
                "factor on the initial weights",
                "test accuracy (%)",
                lines,
                log_x=True,
                y_range=(0, 100),
                x_ticks=self.scales,
                note=(
                    "Each arm at the rate that was best for it at factor 1. Mean over seeds; the band spans the lowest "
                    "and the highest seed."
                ),
            ),
            Intervals(
                "What the worst scale costs in test accuracy",
                "percentage points lost against scale 1",
                rows,
                0.0,
                "nothing lost",
                note="95% intervals over seeds. The worst scale is each arm's own, by validation accuracy.",
            ),
        ]


CLAIM = Initialisation()
