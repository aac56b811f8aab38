"""Batch norm often does not lower internal covariate shift, measured by the gradient."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean
from typing import ClassVar

from ...report.chart import Curves, Figure, Intervals, Panels, Row, Series
from ...report.number import spoken
from ..apparatus.gradient_shift import GradientShift, Moved
from ..apparatus.searched import chosen, common, lacking, parted, planned, ratio, tuned
from ..arms import derive
from ..claim import About, Conclusion, Effect, Report, Result, Run, SubjectClaim, Topic, Value, Verdict
from ..data import Source, split
from ..error import StudyError
from ..learning import LEARNT, SHARE, baseline
from ..statements import Case
from ..statistics import Interval, interval, paired
from ..subjects import Stack, Subject
from ..training import Recipe, train

__all__ = ["CLAIM", "CovariateShift"]

_WORDS = {"norm": "with batch norm", "plain": "without"}
_KINDS = {"norm": "batch", "plain": "none"}
_LEAST = 1e-12  # a shift that float32 cannot tell from none


@dataclass(frozen=True, kw_only=True)
class CovariateShift(SubjectClaim):
    """Measures how each layer's gradient changes when the layers before it make their update.

    Args:
        plain_rates: Learning rates that the network without batch norm is searched over.
        norm_rates: The same with batch norm.
        steps: Updates of each training.
        batch_size: Images an update.
        every: Steps between two looks at the validation split.
        measured: Updates between two measurements.
        moved: In the arm with batch norm the earlier layers are moved by this share of their update before the
            gradient is taken again; less than 1 lowers its shift: the effect removed.
        limit: A ratio below it is a lowering worth the name.
        share: Of the way from guessing to 100%, what a network must come.
    """

    subject: Subject = Stack(((8, 2), (16, 2), (16, 1), (16, 1), (32, 2), (32, 1), (32, 1)))
    plain_rates: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1)
    norm_rates: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0)
    steps: int = 250
    batch_size: int = 60
    every: int = 50
    measured: int = 50
    moved: float = 1.0
    limit: float = 0.9
    share: float = SHARE

    arms_of_subject: ClassVar[tuple[str, ...]] = ("none", "batch")

    about: ClassVar[About] = About(
        id="covariate-shift",
        topic=Topic.CONTESTED,
        title="Batch norm often does not lower internal covariate shift, measured by the gradient",
        statement=(
            "Batch norm was introduced to reduce internal covariate shift: that an update of the layers before a layer "
            "changes what this layer is to learn. Measured as how far that layer's gradient moves by such an update, "
            "in proportion to the gradient, batch norm does not lower it by a tenth or more, each network at the "
            "learning rate that is best for it. This is one network on one set of images: it can show that the shift "
            "is not always lowered, and not how often."
        ),
        formula=(
            r"\text{shift}_i = \frac{\lVert G_i - G_i' \rVert}{\lVert G_i \rVert} \qquad "
            r"G_i = \nabla_{W_i} L(W_1, \ldots, W_k) \qquad "
            r"G_i' = \nabla_{W_i} L(W_1', \ldots, W_{i-1}', W_i, \ldots, W_k)"
        ),
        symbols=(
            "Here W₁ to W_k are the weights of the layers before an update of the training and W′ those after it, "
            "and L is the loss on the batch of that update. The paper defines the shift as the numerator alone."
        ),
        source=(
            "Santurkar et al. 2018, How Does Batch Normalization Help Optimization? (arXiv 1805.11604), Section 2.2, "
            "Definition 2.1"
        ),
        paper=(
            "The paper shows curves, in which the shift with batch norm is not lower; no number of it was checked. "
            "Here a small network is trained for 250 steps: the direction can be compared."
        ),
        setup=(
            "SGD with momentum 0.9, batches of 60, 250 steps, constant rate. At the first update and then at every "
            "50th after it, each layer's gradient is taken twice on the update's own batch: at the weights before it, "
            "and with the layers before this one, norms included, as the update leaves them. Batch norm uses the "
            "statistics of that batch both times. The first layer has none before it and is left out. The arm without "
            "batch norm keeps each norm's bias. It is searched over the rates 0.003, 0.01, 0.03 and 0.1, the other one "
            "over 0.03, 0.1, 0.3 and 1: in each seed, the rate with the best validation accuracy. Arms of a seed "
            "have the same split, first weights and batch order. The shift in proportion decides, since the numerator "
            "alone also falls where the gradient is merely smaller, and because batch norm changes the gradient's "
            "size; that was set before anything ran. In a pilot on seed 100 of the default data, which chose the "
            "rates and the number of steps, the two did not agree, nor did best and common rates: so all of these "
            "are reported."
        ),
        metric=("‖G − G′‖/‖G‖ as the geometric mean over layers and measured updates; with batch norm over without"),
        direction="not lower with batch norm, up to a tenth: a ratio above 0.9",
        pass_rule=(
            "Each arm at its best rate, paired by seed, in logarithms. Reproduced: the 95% interval of the ratio lies "
            "above 0.9. Not reproduced: it lies below 0.9. Otherwise, or if a network has not learnt at its best rate, "
            "inconclusive. The absolute shift, the cosine of G and G′ and common rates are no part of it. " + LEARNT
        ),
        control=(
            "In the arm with batch norm the earlier layers are moved by only a hundredth of their update before the "
            "gradient is taken again, so its shift is lowered, as the claim says that batch norm does not."
        ),
        budget=85,
        tier="standard",
        smallest=60,
    )

    def without_effect(self) -> CovariateShift:
        """The shift with batch norm is lowered by hand."""
        return replace(self, moved=0.01)

    def _grids(self) -> dict[str, tuple[float, ...]]:
        return {"norm": self.norm_rates, "plain": self.plain_rates}

    def plan(self, seeds: Sequence[int], data: Source | None) -> list[Run]:
        """One run an arm, learning rate and seed."""
        return planned(self.about.id, self._grids(), seeds, data)

    def execute(self, run: Run, report: Report) -> dict[str, Value]:
        """Trains one network and measures its shift on the way.

        Raises:
            StudyError: If no layer with weights has another one before it.
        """
        arm, rate = parted(run)
        parts = split(run.source, run.seed)
        model = derive(self.subject.build(parts, run.seed), _KINDS[arm])
        shift = GradientShift(model, self.measured, self.moved if arm == "norm" else 1.0)
        recipe = Recipe(rate, steps=self.steps, batch_size=self.batch_size, every=self.every)
        history = train(model, parts, recipe, seed=run.seed, report=report, before=shift.before)
        found = shift.shifts
        if found and not found[0]:
            raise StudyError(
                f"{self.about.id}: no layer of the network ({self.subject.description}) has one with weights before "
                "it, whose update could shift it.",
                "give a network of several layers, or leave this claim out",
            )
        layers = list(zip(*found, strict=True))
        return {
            **history.values(),
            **baseline(parts),
            "measured": [float(step) for step in shift.steps],
            "relative by layer": [_geometric(layer, "relative") for layer in layers],
            "absolute by layer": [_geometric(layer, "absolute") for layer in layers],
            "cosine by layer": [fmean(moved.cosine for moved in layer) for layer in layers],
            "relative by update": [_geometric(update, "relative") for update in found],
            "absolute by update": [_geometric(update, "absolute") for update in found],
        }

    def conclude(self, results: Sequence[Result]) -> Conclusion:
        """Compares the shift at each arm's best rate."""
        grids = self._grids()
        best = tuned(results, grids)
        norm, plain = best["norm"], best["plain"]
        missing = lacking(best, {arm: f"a network {word}" for arm, word in _WORDS.items()}, self.share)
        if any(result.values["diverged"] for arm in best.values() for result in arm.values()):
            # What such a run measured, if anything, is no shift of a training: a ratio of it would be invented.
            reason = missing.removeprefix(" But ")
            return Conclusion(
                Verdict.INCONCLUSIVE,
                f"{reason[:1].upper()}{reason[1:]} Where every rate stopped being finite there is no shift to compare.",
                [],
                findings=[chosen(best, grids, _WORDS)],
            )
        spans: dict[str, Interval] = {}
        verdicts: dict[str, Verdict] = {}
        for what in ("relative", "absolute"):
            logs, spans[what] = ratio(norm, plain, partial(_level, what=what))
            verdicts[what] = self._verdict(logs)
        cosine = paired(
            *([fmean(result.numbers("cosine by layer")) for result in arm.values()] for arm in (norm, plain))
        )
        verdict = Verdict.INCONCLUSIVE if missing else verdicts["relative"]
        at_rate = {
            rate: {what: ratio(arms["norm"], arms["plain"], partial(_level, what=what))[1] for what in spans}
            for rate, arms in common(results, grids, self.share).items()
        }
        each = "With batch norm against without, each at its best rate: "
        effects = [
            Effect(each + "shift in proportion to the gradient", spans["relative"], "×", ratio=True),
            Effect(each + "absolute shift", spans["absolute"], "×", ratio=True),
            Effect("With batch norm minus without, each at its best rate: cosine of G and G′", cosine),
        ]
        effects += [
            Effect(f"With batch norm against without, both at rate {rate:g}: {what} shift", span, "×", ratio=True)
            for rate, found in at_rate.items()
            for what, span in found.items()
        ]
        same = verdicts["absolute"] is verdicts["relative"]
        reason = (
            f"In proportion to the gradient the shift with batch norm is {spans['relative'].times()} that without, "
            f"each at its best rate. The absolute shift is {spans['absolute'].times()} that without: by the same limit "
            f"the claim would be {verdicts['absolute'].value}{', too' if same else ' for it'}.{missing}"
        )
        layers = self._layers(norm, plain)
        charts: list[Figure] = [
            self._by_layer(best, verdict),
            self._by_update(best),
            self._ratios(spans, at_rate, layers),
        ]
        return Conclusion(verdict, reason, effects, charts, self._findings(best, cosine, at_rate, layers))

    def _verdict(self, logs: Sequence[float]) -> Verdict:
        return Case("shift", logs, math.log(self.limit), above=True, factor=True).verdict

    def _layers(self, norm: Mapping[int, Result], plain: Mapping[int, Result]) -> list[tuple[Verdict, Interval]]:
        """What each layer says by the rule of the whole, from the second to the last."""
        found = []
        for layer in range(min(len(_by_layer(result)) for arm in (norm, plain) for result in arm.values())):
            logs, span = ratio(norm, plain, partial(_of_layer, layer=layer))
            found.append((self._verdict(logs), span))
        return found

    def _findings(
        self,
        best: Mapping[str, Mapping[int, Result]],
        cosine: Interval,
        at_rate: Mapping[float, Mapping[str, Interval]],
        layers: Sequence[tuple[Verdict, Interval]],
    ) -> list[str]:
        means = [
            fmean(fmean(result.numbers("cosine by layer")) for result in best[arm].values())
            for arm in ("norm", "plain")
        ]
        counts = [
            sum(verdict is wanted for verdict, _ in layers) for wanted in (Verdict.REPRODUCED, Verdict.NOT_REPRODUCED)
        ]
        found = [
            chosen(best, self._grids(), _WORDS),
            f"By the same rule layer by layer, the shift in proportion is lower by less than a tenth, or not at all, "
            f"in {counts[0]} of {len(layers)} layers, and lower by more in {counts[1]}; in "
            f"{len(layers) - sum(counts)} it is open.",
            f"The cosine of G and G′, averaged over layers and updates, is {means[0]:.3f} with batch norm and "
            f"{means[1]:.3f} without, a difference of {cosine.signed(3)}; 1 is no shift.",
        ]
        if at_rate:
            rates = "; ".join(
                f"at {rate:g}, in proportion {spans['relative'].times()} and absolute {spans['absolute'].times()}"
                for rate, spans in at_rate.items()
            )
            found.append(f"At a common rate, of those with which both learnt in every seed, the ratios are {rates}.")
            own = ratio(best["norm"], best["plain"], _rate)[1]
            found.append(
                "At their best rates the two differ in the rate as well: that with batch norm is "
                f"{spoken(own.estimate)} times that without, as a geometric mean."
            )
        else:
            found.append("There is no common rate of the grids with which both learnt in every seed.")
        return found

    def _by_layer(self, best: Mapping[str, Mapping[int, Result]], verdict: Verdict) -> Panels:
        panels = []
        for name, title, logarithmic in (
            ("relative by layer", "‖G − G′‖/‖G‖", True),
            ("cosine by layer", "cosine of G and G′", False),
        ):
            lines = [_series(best[arm], name, arm, logarithmic=logarithmic) for arm in ("plain", "norm")]
            panels.append(
                Curves(title, "layer with weights", title, lines, log_y=logarithmic, x_ticks=list(lines[0].x))
            )
        title = {
            Verdict.REPRODUCED: "Batch norm does not lower the shift in proportion to the gradient by a tenth",
            Verdict.NOT_REPRODUCED: "Batch norm lowers the shift in proportion to the gradient by more than a tenth",
            Verdict.INCONCLUSIVE: "The shift of each layer, with and without batch norm",
        }[verdict]
        return Panels(
            title,
            panels,
            note=(
                "Each arm at its best rate, averaged over the updates measured. Bands are 95% intervals over seeds. "
                "Layers count from the first one that has weights before it, which is 2."
            ),
        )

    def _by_update(self, best: Mapping[str, Mapping[int, Result]]) -> Panels:
        panels = [
            Curves(
                title,
                "training steps",
                title,
                [
                    _series(best[arm], f"{what} by update", arm, logarithmic=True, x="measured")
                    for arm in ("plain", "norm")
                ],
                log_y=True,
            )
            for what, title in (("relative", "‖G − G′‖/‖G‖"), ("absolute", "‖G − G′‖"))
        ]
        return Panels(
            "The shift during training, in proportion to the gradient and as it is",
            panels,
            note="Geometric mean over layers. Bands are 95% intervals over seeds. Each arm at its best rate.",
        )

    def _ratios(
        self,
        spans: Mapping[str, Interval],
        at_rate: Mapping[float, Mapping[str, Interval]],
        layers: Sequence[tuple[Verdict, Interval]],
    ) -> Intervals:
        words = {"relative": "in proportion", "absolute": "absolute"}
        rows = [Row(f"{words[what]}, best rates", *span.numbers, 1) for what, span in spans.items()]
        rows += [
            Row(f"{words[what]}, both at {rate:g}", *span.numbers, 3)
            for rate, found in at_rate.items()
            for what, span in found.items()
        ]
        rows += [Row(f"layer {place}, in proportion", *span.numbers, 2) for place, (_, span) in enumerate(layers, 2)]
        return Intervals(
            "The shift with batch norm against without, by measure, rate and layer",
            "with batch norm over without",
            rows,
            1.0,
            "no difference",
            log_x=True,
            note="95% intervals over seeds. Layers: each arm at its best rate.",
        )


def _log(value: float) -> float:
    return math.log(max(value, _LEAST))


def _by_layer(result: Result) -> list[float]:
    return result.numbers("relative by layer")


def _geometric(found: Sequence[Moved], what: str) -> float:
    return math.exp(fmean(_log(getattr(moved, what)) for moved in found))


def _level(result: Result, what: str) -> float:
    """The logarithm of the geometric mean over layers and updates."""
    return fmean([_log(value) for value in result.numbers(f"{what} by layer")])


def _of_layer(result: Result, layer: int) -> float:
    return _log(_by_layer(result)[layer])


def _rate(result: Result) -> float:
    return math.log(parted(result.run)[1])


def _series(arm: Mapping[int, Result], name: str, label: str, *, logarithmic: bool, x: str | None = None) -> Series:
    """Mean over seeds with its interval, geometric where it is logarithmic."""
    looks = list(zip(*(result.numbers(name) for result in arm.values()), strict=False))
    if logarithmic:
        spans = [interval([_log(value) for value in look]).exponential() for look in looks]
    else:
        spans = [interval(look) for look in looks]
    at = [float(place) for place in range(2, len(looks) + 2)] if x is None else next(iter(arm.values())).numbers(x)
    known = all(span.count > 1 for span in spans)
    return Series(
        _WORDS[label],
        list(at)[: len(looks)],
        [span.estimate for span in spans],
        0 if label == "plain" else 1,
        [span.low for span in spans] if known else None,
        [span.high for span in spans] if known else None,
        markers=True,
    )


CLAIM = CovariateShift()
