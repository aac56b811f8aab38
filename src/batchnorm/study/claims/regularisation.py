"""Batch norm regularises, and the less so the more images are normalised together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...population import recalibrate
from ...report.chart import Curves, Figure, Intervals, Panels, Row, Series
from ..apparatus.small_parts import check_rows, normalised_by
from ..arms import derive, norms
from ..claim import About, Conclusion, Effect, Report, Result, Run, SubjectClaim, Topic, Value, Verdict
from ..data import Source, Split, split
from ..learning import LEARNT, SHARE, baseline, learnt, shortfall
from ..search import ends
from ..statements import Case
from ..statistics import Interval, interval, paired
from ..subjects import Stack
from ..training import Recipe, accuracy, train

__all__ = ["CLAIM", "Regularisation"]

_ARM = "network"
_MEASURES = ("gap", "train loss", "test loss", "train accuracy", "test accuracy")


@dataclass(frozen=True, kw_only=True)
class Regularisation(SubjectClaim):
    """Trains one network on few images, its norms by the statistics of parts of the batch.

    Args:
        images: That a network learns from, at most.
        batch_size: Images an update.
        sizes: Images that are normalised together; the last is the batch.
        penalties: λ of λ·Σγ², with the statistics of the whole population instead of a batch's.
        rates: Learning rates at the first update that are searched, with the last size for all sizes, and with the
            population's statistics for all penalties.
        steps: Updates.
        whole: Whether every size is the whole batch: the effect removed.
        share: Of the way from guessing to 100%, what a network must come for its gap to mean anything.
    """

    images: int = 600
    batch_size: int = 64
    sizes: tuple[int, ...] = (2, 4, 8, 16, 32, 64)
    penalties: tuple[float, ...] = (0.001, 0.01)
    rates: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0)
    steps: int = 300
    whole: bool = False
    share: float = SHARE

    arms_of_subject: ClassVar[tuple[str, ...]] = ("ghost", "renorm")

    about: ClassVar[About] = About(
        id="regularisation",
        topic=Topic.DOES,
        title="Batch norm regularises, and the less so the more images are normalised together",
        statement=(
            "In training, an image's output depends on the images that it shares a batch with. That is noise, which "
            "keeps a network from fitting its training images too closely. The larger the batch whose statistics are "
            "used, the less noise there is, and the wider the gap between the training images and others. The paper "
            "takes batch norm apart into a norm by population statistics, which has no such noise, and a penalty on γ; "
            "what that penalty does to the gap is measured below and is no part of the verdict."
        ),
        formula=(
            r"\text{gap}(M) = L_{\text{test}} - L_{\text{train}} \qquad "
            r"\text{slope} = \frac{\sum_M (\log_2 M - \overline{\log_2 M})\,\text{gap}(M)}"
            r"{\sum_M (\log_2 M - \overline{\log_2 M})^2}"
        ),
        symbols=(
            "Here M is the normalisation batch, the images normalised together, and L the mean cross-entropy in "
            "evaluation mode, on the test split and on the images that were learnt from."
        ),
        source=("Luo et al. 2018, Towards Understanding Regularization in Batch Normalization (arXiv 1809.00846)"),
        paper=None,
        setup=(
            "At most 600 images of the training part, so that there is something to fit too closely. SGD with "
            "momentum 0.9, batches of 64, 300 updates, the rate falling in a straight line to 0, the last weights. "
            "Each batch is normalised in parts of 2, 4, 8, 16, 32 or 64 images (ghost batches). Running statistics "
            "move once a part, by the less the smaller it is, so that they look back over as many images whatever its "
            "size. All share split, initial weights, batch order and rate, which in each seed is the one of 0.1, "
            "0.3, 1 and 3 with the best validation accuracy for parts of 64. (In earlier studies on these seeds a part "
            "of any size moved the running statistics by a tenth, so those of small parts looked back over fewer "
            "images. And what a penalty on γ changes was told of networks that had learnt nothing too; now it is not.) "
            "And with population statistics: "
            "batch renorm without limits, which normalises by its running statistics, taken before the first update "
            "over all images learnt from; alone, by which a rate of its own is chosen likewise, and at that rate with "
            "a penalty λ·Σγ² in the loss, λ = 0.001 and 0.01. (In a first study on these seeds it had the "
            "others' rate, at which it stopped being finite, and a third λ, left out to save time; no verdict depends "
            "on these. In it and in a second one the rates reached to 1, which nearly every choice was the end of, so "
            "the grid got one more.) The test split plays "
            "no part in any choice. Pilots on seeds 100 and 101 of the default data looked at "
            "validation only: with 320 images the networks reached about 65% accuracy, so there are 600, and 0.3 was "
            "better than 0.1, so the rates reached to 1. The gap was smaller with small parts in both."
        ),
        metric="gap: cross-entropy on the test split minus that on the images learnt from, both in evaluation mode",
        direction="grows with the number of images that are normalised together",
        pass_rule=(
            "In each seed, the slope of a straight line of the gap over the logarithm to base 2 of the normalisation "
            "batch, from 2 to 64. Reproduced: its 95% interval over seeds lies above 0. Not reproduced: it lies wholly "
            "at or below 0. Otherwise, or if one of these networks has not learnt with its last weights or stopped "
            "being finite, inconclusive. " + LEARNT
        ),
        control="Every normalisation batch is the whole batch of 64.",
        budget=150,
        tier="standard",
        smallest=64,
    )

    def without_effect(self) -> Regularisation:
        """All normalise the whole batch together."""
        return replace(self, whole=True)

    def check(self, parts: Split) -> None:
        """Refuses a network whose norms do not see one row an image, besides what every claim refuses."""
        super().check(parts)
        check_rows(self.subject.build(parts, 0), parts.train[0])

    def plan(self, seeds: Sequence[int], data: Source | None) -> list[Run]:
        """One run a seed: its networks share the rate that one of them is searched for."""
        return [Run(self.about.id, _ARM, seed, data) for seed in seeds]

    def execute(self, run: Run, report: Report) -> dict[str, Value]:
        """Searches the rate, and trains the networks of a seed."""
        parts = split(run.source, run.seed)
        few = replace(parts, train=(parts.train[0][: self.images], parts.train[1][: self.images]))
        trainings = 2 * len(self.rates) + len(self.sizes) - 1 + len(self.penalties)
        done = 0

        def measured(rate: float, model: nn.Module, name: str) -> dict[str, float]:
            nonlocal done
            recipe = Recipe(rate, steps=self.steps, batch_size=self.batch_size, every=self.steps, decay=True)
            told = partial(_told, report, done, trainings, name)
            history = train(model, few, recipe, seed=run.seed, report=told)
            done += 1
            return {"validation": history.validation[-1], "finite": float(not history.diverged)} | _measured(model, few)

        def ghost(size: int) -> nn.Module:
            size = self.batch_size if self.whole else size
            return normalised_by(self.subject.build(parts, run.seed), size, self.batch_size)

        found = [measured(rate, ghost(self.sizes[-1]), f"rate {rate:g}") for rate in self.rates]
        place = max(range(len(found)), key=lambda each: found[each]["validation"])
        rate = self.rates[place]
        by_size = [measured(rate, ghost(size), f"{size} together") for size in self.sizes[:-1]] + [found[place]]
        searched = [
            measured(each, self._population(parts, few, run.seed, 0.0), f"population, rate {each:g}")
            for each in self.rates
        ]
        best = max(range(len(searched)), key=lambda each: searched[each]["validation"])
        by_penalty = [searched[best]] + [
            measured(
                self.rates[best], self._population(parts, few, run.seed, penalty), f"population, penalty {penalty:g}"
            )
            for penalty in self.penalties
        ]
        values: dict[str, Value] = {
            "rate": rate,
            "population rate": self.rates[best],
            "search": [each["validation"] for each in found],
            "finite": all(each["finite"] for each in by_size),
            "population finite": all(each["finite"] for each in by_penalty),
            # What the last of them has learnt, all have.
            "validation": min(each["validation"] for each in by_size),
            "images": len(few.train[1]),
        }
        for what in _MEASURES:
            values[what] = [each[what] for each in by_size]
            values[f"population {what}"] = [each[what] for each in by_penalty]
        for penalty, each in zip((0.0, *self.penalties), by_penalty, strict=True):
            values[_validation(penalty)] = each["validation"]
        return values | baseline(parts)

    def _population(self, parts: Split, few: Split, seed: int, penalty: float) -> nn.Module:
        """The network with norms by population statistics, and a penalty on γ."""
        model = self.subject.build(parts, seed)
        recalibrate(model, few.train[0].split(self.batch_size))
        limitless: dict[str, Any] = {"r_max": math.inf, "d_max": math.inf, "warmup": 0}
        model = derive(model, "renorm", **limitless)
        for norm in norms(model).values():
            gamma = norm.weight
            # One that is not trained takes no hook, and no penalty would move it.
            if penalty and isinstance(gamma, nn.Parameter) and gamma.requires_grad:
                # The derivative of λ·Σγ², added to that of the loss.
                gamma.register_hook(partial(_penalised, gamma, penalty))
        return model.train()

    def conclude(self, results: Sequence[Result]) -> Conclusion:
        """Fits a line a seed, and judges its slope."""
        seeds = sorted(results, key=lambda result: result.run.seed)
        case = Case(
            "Growth of the gap with each doubling of the normalisation batch",
            self._slopes(seeds, "gap"),
            0.0,
            True,
            False,
        )
        missing = self._missing(seeds)
        slope = case.interval
        effects = [Effect(case.name, slope, "nats")]
        ends_of = {what: [[each.numbers(what)[place] for each in seeds] for place in (-1, 0)] for what in _MEASURES}
        span = f"{self.sizes[-1]} images together minus {self.sizes[0]}"
        effects += [
            Effect(f"Gap, {span}", paired(*ends_of["gap"]), "nats"),
            Effect(f"Cross-entropy on the test split, {span}", paired(*ends_of["test loss"]), "nats"),
            Effect(f"Test accuracy, {span}", paired(*ends_of["test accuracy"]).scaled(100), "points"),
        ]
        drops = self._drops(seeds)
        effects += [
            Effect(f"Gap by population statistics, with a penalty of {penalty:g} minus without", drop, "nats")
            for penalty, drop in drops.items()
        ]
        if not self._apart(seeds):
            alone = [[each.numbers("population gap")[0] for each in seeds], ends_of["gap"][0]]
            name = f"Gap by population statistics minus {self.sizes[-1]} images together, each at its best rate"
            effects.append(Effect(name, paired(*alone), "nats"))
        gaps = self._by_size(seeds, "gap")
        reason = (
            f"The gap is {gaps[0].estimate:.3f} nats with {self.sizes[0]} images normalised together and "
            f"{gaps[-1].estimate:.3f} with {self.sizes[-1]}; its slope is {slope.signed(3)} nats a doubling.{missing}"
        )
        return Conclusion(
            Verdict.INCONCLUSIVE if missing else case.verdict,
            reason,
            effects,
            self._charts(seeds, slope, drops),
            self._findings(seeds, drops),
        )

    def _slopes(self, seeds: Sequence[Result], what: str) -> list[float]:
        at = [math.log2(size) - fmean(math.log2(each) for each in self.sizes) for size in self.sizes]
        squares = math.fsum(x * x for x in at)
        # Less the last value, so that equal values have the slope 0 to the last bit.
        lines = [[value - each.numbers(what)[-1] for value in each.numbers(what)] for each in seeds]
        return [math.fsum(x * y for x, y in zip(at, line, strict=True)) / squares for line in lines]

    def _by_size(self, seeds: Sequence[Result], what: str) -> list[Interval]:
        return [interval([each.numbers(what)[place] for each in seeds]) for place in range(len(self.sizes))]

    def _missing(self, seeds: Sequence[Result]) -> str:
        """Why the networks say nothing, as a sentence; empty where they do."""
        if any(not each.values["finite"] for each in seeds):
            return " But the training of a network stopped being finite."
        if lacking := [each for each in seeds if not learnt(each, self.share, "validation")]:
            return f" But a network stayed at {shortfall(lacking[0], self.share, 'validation')}."
        return ""

    def _apart(self, seeds: Sequence[Result]) -> str:
        """Why the networks with population statistics are compared with nothing, as a sentence; empty if they are."""
        if any(not each.values["population finite"] for each in seeds):
            return "A training by population statistics stopped being finite, so these are not compared."
        if lacking := [each for each in seeds if not learnt(each, self.share, _validation(0.0))]:
            return (
                "By population statistics alone a network stayed at "
                f"{shortfall(lacking[0], self.share, _validation(0.0))}, so these are not compared."
            )
        return ""

    def _drops(self, seeds: Sequence[Result]) -> dict[float, Interval]:
        """What each penalty changes in the gap, of those with which the network has learnt in every seed."""
        if self._apart(seeds):
            return {}
        gaps = [each.numbers("population gap") for each in seeds]
        return {
            penalty: paired([gap[place] for gap in gaps], [gap[0] for gap in gaps])
            for place, penalty in enumerate(self.penalties, 1)
            if all(learnt(each, self.share, _validation(penalty)) for each in seeds)
        }

    def _findings(self, seeds: Sequence[Result], drops: dict[float, Interval]) -> list[str]:
        mean = {what: [span.estimate for span in self._by_size(seeds, what)] for what in _MEASURES}
        told = "; ".join(
            f"{size} together {mean['train loss'][place]:.3f} and {mean['test loss'][place]:.3f} "
            f"({100 * mean['test accuracy'][place]:.1f}%)"
            for place, size in enumerate(self.sizes)
        )
        lowest = min(range(len(self.sizes)), key=mean["test loss"].__getitem__)
        best = max(range(len(self.sizes)), key=mean["test accuracy"].__getitem__)
        found = [
            "Cross-entropy on the images learnt from and on the test split, and test accuracy, as means over seeds: "
            f"{told}.",
            "A small gap is no small error: it may come of fitting the training images worse. The cross-entropy on the "
            f"test split is lowest with {self.sizes[lowest]} images together, the accuracy highest with "
            f"{self.sizes[best]}.",
        ]
        found.append(self._by_population(seeds, drops))
        names = {"rate": "by the batch's statistics", "population rate": "by the population's"}
        chosen = "; ".join(
            f"{words} {', '.join(format(each.number(name), 'g') for each in seeds)}" for name, words in names.items()
        )
        searched = [(each.number(name), self.rates) for name in names for each in seeds]
        found.append(f"Rates chosen on the validation split, seed by seed: {chosen}. {ends(searched)}")
        return found

    def _by_population(self, seeds: Sequence[Result], drops: dict[float, Interval]) -> str:
        """What population statistics give, alone and with a penalty, and what of it says nothing."""
        if apart := self._apart(seeds):
            return apart
        alone = [fmean(each.numbers(f"population {what}")[0] for each in seeds) for what in _MEASURES]
        told = f"By population statistics the gap is {alone[0]:.3f} nats and the test accuracy {100 * alone[-1]:.1f}%."
        for place, penalty in enumerate(self.penalties, 1):
            test = 100 * fmean(each.numbers("population test accuracy")[place] for each in seeds)
            if penalty in drops:
                told += (
                    f" A penalty on γ of λ = {penalty:g} changes the gap by {drops[penalty].signed(3)} nats, to a test "
                    f"accuracy of {test:.1f}%."
                )
            else:
                lacking = sum(not learnt(each, self.share, _validation(penalty)) for each in seeds)
                told += (
                    f" With λ = {penalty:g} the network has not learnt in {lacking} of {len(seeds)} seeds (test "
                    f"accuracy {test:.1f}% on average), so its gap is left out."
                )
        return told

    def _charts(self, seeds: Sequence[Result], slope: Interval, drops: dict[float, Interval]) -> list[Figure]:
        at = [float(size) for size in self.sizes]

        def line(label: str, what: str, color: int, scale: float = 1.0) -> Series:
            spans = [span.scaled(scale) for span in self._by_size(seeds, what)]
            finite = all(math.isfinite(span.low) for span in spans)
            return Series(
                label,
                at,
                [span.estimate for span in spans],
                color,
                [span.low for span in spans] if finite else None,
                [span.high for span in spans] if finite else None,
                markers=True,
            )

        places = [0, *(self.penalties.index(penalty) + 1 for penalty in drops)]
        level = [fmean(each.numbers("population gap")[place] for each in seeds) for place in places]
        names = ["population", *(f"population, λ = {penalty:g}" for penalty in drops)]
        flat = [
            Series(name, [at[0], at[-1]], [gap, gap], 0 if place == 0 else 2, dash="dash" if place == 0 else "dot")
            for place, (name, gap) in enumerate(zip(names, level, strict=True))
            if not self._apart(seeds)
        ]
        gap = partial(Curves, x_label="images normalised together", log_x=True, x_ticks=at)
        bands = "Mean over seeds; bands are 95% intervals."
        charts: list[Figure] = [
            gap(
                "The more images are normalised together, the wider the gap between training and test"
                if slope.low > 0
                else "The gap between training and test, by how many images are normalised together",
                y_label="gap of cross-entropy (nats)",
                series=[line("batch norm", "gap", 1), *flat],
                note=f"{bands} Population: statistics of all images instead of a batch's, λ the penalty on γ.",
            ),
            Panels(
                "What the gap is made of, and what it means for accuracy",
                [
                    gap(
                        "Cross-entropy",
                        y_label="nats",
                        series=[line("test", "test loss", 1), line("learnt from", "train loss", 0)],
                    ),
                    gap(
                        "Accuracy",
                        y_label="%",
                        series=[line("test", "test accuracy", 1, 100), line("learnt from", "train accuracy", 0, 100)],
                    ),
                ],
                note=bands,
            ),
        ]
        if drops:
            rows = [Row(f"λ = {penalty:g}", drop.estimate, drop.low, drop.high) for penalty, drop in drops.items()]
            charts.append(
                Intervals(
                    "What a penalty on γ changes in the gap, by population statistics",
                    "nats",
                    rows,
                    0.0,
                    "no penalty",
                    note="95% intervals over seeds.",
                )
            )
        return charts


def _told(report: Report, done: int, trainings: int, name: str, share: float, note: str) -> None:
    report((done + share) / trainings, f"{name}: {note}")


def _validation(penalty: float) -> str:
    """Under which name a run keeps the validation accuracy by population statistics with a penalty."""
    return f"population validation {penalty:g}"


def _penalised(gamma: Tensor, penalty: float, gradient: Tensor) -> Tensor:
    return gradient + 2 * penalty * gamma.detach()


@torch.no_grad()
def _measured(model: nn.Module, parts: Split) -> dict[str, float]:
    """Cross-entropy and accuracy in evaluation mode, on the images learnt from and on the test split."""
    model.eval()
    found = {}
    for name, (images, labels) in (("train", parts.train), ("test", parts.test)):
        losses = [
            nn.functional.cross_entropy(model(part), wanted, reduction="sum").item()
            for part, wanted in zip(images.split(500), labels.split(500), strict=True)
        ]
        found[f"{name} loss"] = math.fsum(losses) / len(labels)
        found[f"{name} accuracy"] = accuracy(model, images, labels)
    found["gap"] = found["test loss"] - found["train loss"]
    # JSON has no other numbers, and a run that is not finite is said to be so.
    return {what: value if math.isfinite(value) else 0.0 for what, value in found.items()}


CLAIM = Regularisation(subject=Stack(((8, 2), (16, 2), (32, 2))))
