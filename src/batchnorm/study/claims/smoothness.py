"""Batch norm makes loss and gradient change less along the gradient."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean, median
from typing import ClassVar

from ...report.chart import Curves, Figure, Intervals, Panels, Row, Series
from ...report.number import spoken
from ..apparatus.at_weights import finite
from ..apparatus.landscape import Landscape
from ..apparatus.searched import chosen, common, lacking, parted, planned, ratio, tuned
from ..arms import derive
from ..claim import About, Conclusion, Effect, Report, Result, Run, SubjectClaim, Topic, Value, Verdict
from ..data import Source, split
from ..learning import LEARNT, SHARE, baseline
from ..statements import Case, joined, rank
from ..statistics import Interval, paired
from ..subjects import Stack, Subject
from ..training import Recipe, train

__all__ = ["CLAIM", "Smoothness"]

_WORDS = {"norm": "with batch norm", "plain": "without"}
_KINDS = {"norm": "batch", "plain": "none"}
# The paper's three, which decide, and the one that is corrected for the length of the weights.
_RAW = {"loss range": "range of the loss", "gradient change": "change of the gradient ‖Δg‖", "beta": "effective β"}
_FREE = {"beta w2": "β·‖w‖²"}
_LEAST = 1e-30  # a loss or a gradient that does not change at all


@dataclass(frozen=True, kw_only=True)
class Smoothness(SubjectClaim):
    """Walks along the gradient while networks with and without batch norm train.

    Args:
        plain_rates: Learning rates that the network without batch norm is searched over.
        norm_rates: The same with batch norm.
        steps: Updates of each training.
        batch_size: Images an update, and a walk.
        every: Steps between two looks at the validation split.
        walks: Updates between two walks.
        lengths: Of a walk's eight places: what the gradient is multiplied by.
        norm: False leaves every arm without batch norm: the effect removed.
        limit: A ratio below it is an improvement worth the name.
        share: Of the way from guessing to 100%, what a network must come.
    """

    subject: Subject = Stack(((8, 2), (16, 2), (16, 1), (16, 1), (32, 2), (32, 1), (32, 1)))
    plain_rates: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1)
    norm_rates: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0)
    steps: int = 200
    batch_size: int = 60
    every: int = 25
    walks: int = 20
    lengths: tuple[float, ...] = (0.003125, 0.00625, 0.0125, 0.025, 0.05, 0.1, 0.2, 0.4)
    norm: bool = True
    limit: float = 0.9
    share: float = SHARE

    arms_of_subject: ClassVar[tuple[str, ...]] = ("none", "batch")

    about: ClassVar[About] = About(
        id="smoothness",
        topic=Topic.CONTESTED,
        title="Batch norm makes loss and gradient change less along the gradient",
        statement=(
            "One step against the gradient says little of the next if loss and gradient change much on the way. With "
            "batch norm they change less: on the way along the gradient the loss has a smaller range, the gradient "
            "changes less, and changes less for the distance, which is an effective β-smoothness. Networks are "
            "compared at the learning rate that is best for each. This is the explanation that was offered in place "
            "of internal covariate shift; that networks train better because of it does not follow from these "
            "measures. Whether a measure that is corrected for the length of the weights agrees is looked at below "
            "and is no part of the verdict."
        ),
        formula=(
            r"\beta = \max_{\eta} \frac{\lVert g(\theta) - g(\theta - \eta\, g(\theta)) \rVert}"
            r"{\lVert \eta\, g(\theta) \rVert}"
        ),
        symbols=(
            "Here θ are the weights, g is the gradient of the loss on one batch, the same at all places, and η runs "
            "over the eight lengths. w are the weights of layers, without biases, γ and β. A network that "
            "divides by the size of its weights has a gradient that falls, and a curvature that falls quadratically, "
            "as they grow: β·‖w‖² corrects for that length. For a network that divides by the size of all its "
            "weights, and for short steps, it would not depend on their scale. Here it does: the lengths are fixed, "
            "the last layer's weights count in ‖w‖² as well, and without batch norm nothing is divided."
        ),
        source="Santurkar et al. 2018, How Does Batch Normalization Help Optimization? (arXiv 1805.11604), Section 3",
        paper=(
            "A secondary source speaks of an improvement by nearly two orders of magnitude, for a larger network "
            "on other images. Here a small network is trained for 200 steps, and lengths differ: the direction can be "
            "compared, the factors cannot."
        ),
        setup=(
            "SGD with momentum 0.9, batches of 60, 200 steps, constant rate. Before the first update and then every 20 "
            "updates, the update's own batch is taken once more at θ − ηg for eight η, 0.4, 0.2, 0.1 and so on, "
            "each half the one before, the same for both arms; batch norm uses the statistics of that batch. The arm "
            "without batch norm keeps each norm's bias. It is searched over the rates 0.003, 0.01, 0.03 and 0.1, the "
            "other one over 0.01, 0.03, 0.1, 0.3 and 1: in each seed, the rate with the best validation accuracy; "
            "the rates that both have are compared as well. Arms of a seed have the same split, first weights and "
            "batch order. Lengths, measures and rule were set first; a pilot on seed 100 of the default data was run "
            "to choose the rates, and changed nothing else. That each length is kept on its own as well was added "
            "after results on seeds 0 to 4 were seen, since the longest is many times the rate at which the network "
            "without batch norm is trained; it is no part of the rule. Every walk is of one run: an envelope around "
            "runs at different learning rates, as it is sometimes drawn under this name, would show how runs differ."
        ),
        metric=(
            "over a training, the median of each walk's range of the loss, largest change of the gradient, and "
            "effective β; with batch norm over without"
        ),
        direction="smaller with batch norm, by a tenth at least: ratios below 0.9",
        pass_rule=(
            "Each arm at its best rate, paired by seed, in logarithms. Reproduced: the 95% intervals of all three "
            "ratios lie below 0.9. Not reproduced: one of them lies above 0.9. Otherwise, or if a network has not "
            "learnt at its best rate, inconclusive. " + LEARNT
        ),
        control="The arm named with batch norm has none either.",
        budget=110,
        tier="standard",
        smallest=60,
    )

    def without_effect(self) -> Smoothness:
        """No arm has batch norm; both are searched over the same rates."""
        return replace(self, norm=False, norm_rates=self.plain_rates)

    def _grids(self) -> dict[str, tuple[float, ...]]:
        return {"norm": self.norm_rates, "plain": self.plain_rates}

    def plan(self, seeds: Sequence[int], data: Source | None) -> list[Run]:
        """One run an arm, learning rate and seed."""
        return planned(self.about.id, self._grids(), seeds, data)

    def execute(self, run: Run, report: Report) -> dict[str, Value]:
        """Trains one network and walks along its gradient on the way."""
        arm, rate = parted(run)
        parts = split(run.source, run.seed)
        model = derive(self.subject.build(parts, run.seed), _KINDS[arm] if self.norm else "none")
        landscape = Landscape(model, self.lengths, self.walks)
        recipe = Recipe(rate, steps=self.steps, batch_size=self.batch_size, every=self.every)
        history = train(model, parts, recipe, seed=run.seed, report=report, before=landscape.before)
        walks = landscape.walks
        return {
            **history.values(),
            **baseline(parts),
            "walked": [float(step) for step in landscape.steps],
            "lowest": [walk.lowest for walk in walks],
            "highest": [walk.highest for walk in walks],
            "loss range": [walk.highest - walk.lowest for walk in walks],
            "gradient change": [walk.gradient_change for walk in walks],
            "beta": [walk.beta for walk in walks],
            "beta w2": [finite(walk.beta * walk.weights) for walk in walks],
            "cosine": [fmean(walk.cosines) for walk in walks],
            # Walk after walk: the loss at its start and then by length, and the others by length.
            "losses by length": [loss for walk in walks for loss in walk.losses],
            "changes by length": [change for walk in walks for change in walk.changes],
            "betas by length": [beta for walk in walks for beta in walk.betas],
        }

    def conclude(self, results: Sequence[Result]) -> Conclusion:
        """Compares the three measures at each arm's best rate."""
        grids = self._grids()
        best = tuned(results, grids)
        norm, plain = best["norm"], best["plain"]
        spans: dict[str, Interval] = {}
        cases: dict[str, Case] = {}
        for name in (*_RAW, *_FREE):
            logs, spans[name] = ratio(norm, plain, partial(_level, name=name))
            cases[name] = Case(name, logs, math.log(self.limit), above=False, factor=True)
        missing = lacking(best, {arm: f"a network {word}" for arm, word in _WORDS.items()}, self.share)
        verdict = Verdict.INCONCLUSIVE if missing else joined([cases[name].verdict for name in _RAW])
        order = sorted(_RAW, key=lambda name: (rank(cases[name].verdict), -cases[name].interval.high))
        cosine = paired(*([fmean(result.numbers("cosine")) for result in arm.values()] for arm in (norm, plain)))
        effects = [
            Effect(
                f"With batch norm against without, each at its best rate: {(_RAW | _FREE)[name]}",
                spans[name],
                "×",
                ratio=True,
            )
            for name in (*order, *_FREE)
        ]
        effects.append(Effect("With batch norm minus without, each at its best rate: cosine of the gradients", cosine))
        shared = common(results, grids, self.share)
        at_rate = {
            rate: {name: ratio(arms["norm"], arms["plain"], lambda r, n=name: _level(r, n))[1] for name in spans}  # type: ignore[misc]
            for rate, arms in shared.items()
        }
        effects += [
            Effect(
                f"With batch norm against without, both at rate {rate:g}: effective β", found["beta"], "×", ratio=True
            )
            for rate, found in at_rate.items()
        ]
        reason = (
            "With batch norm over without, each at its best rate: "
            + "; ".join(f"{_RAW[name]} {spans[name].times()}" for name in _RAW)
            + f". {self._free(cases, spans)}{missing}"
        )
        charts: list[Figure] = [
            self._losses(best, Verdict.INCONCLUSIVE if missing else cases["loss range"].verdict),
            self._betas(best, {} if missing else cases),
            self._ratios(spans, at_rate, verdict),
        ]
        return Conclusion(verdict, reason, effects, charts, self._findings(best, spans, cosine, at_rate))

    def _free(self, cases: Mapping[str, Case], spans: Mapping[str, Interval]) -> str:
        """Whether the measure that is corrected for the length of the weights says the same as β itself."""
        free, raw = cases["beta w2"].verdict, cases["beta"].verdict
        compared = "as β" if free is raw else f"unlike β ({raw.value})"
        return (
            f"β·‖w‖², which corrects for the length of the weights, is {spans['beta w2'].times()}: by the same "
            f"limit it would be {free.value}, {compared}."
        )

    def _findings(
        self,
        best: Mapping[str, Mapping[int, Result]],
        spans: Mapping[str, Interval],
        cosine: Interval,
        at_rate: Mapping[float, Mapping[str, Interval]],
    ) -> list[str]:
        norm, plain = best["norm"], best["plain"]
        means = [fmean(fmean(result.numbers("cosine")) for result in arm.values()) for arm in (norm, plain)]
        first = {name: ratio(norm, plain, partial(_at_first, name=name))[1] for name in (*_RAW, *_FREE)}
        found = [
            chosen(best, self._grids(), _WORDS),
            self._short(best, spans),
            f"The cosine between the gradients at both ends, averaged over lengths and walks, is {means[0]:.2f} with "
            f"batch norm and {means[1]:.2f} without, a difference of {cosine.signed()}. A length is a multiple of the "
            "gradient: where the gradient is larger the walk is longer.",
            "Before the first update, where both have the same weights and no learning rate plays a part, the ratios "
            "are " + "; ".join(f"{(_RAW | _FREE)[name]} {span.times()}" for name, span in first.items()) + ".",
        ]
        if at_rate:
            rates = "; ".join(
                f"at {rate:g}, β {spans['beta'].times()} and β·‖w‖² {spans['beta w2'].times()}"
                for rate, spans in at_rate.items()
            )
            found.append(f"At a common rate, of those with which both learnt in every seed, the ratios are {rates}.")
        else:
            found.append("There is no common rate of the grids with which both learnt in every seed.")
        sizes = [
            math.exp(fmean(_log(r.numbers("beta w2")[-1]) - _log(r.numbers("beta")[-1]) for r in arm.values()))
            for arm in (norm, plain)
        ]
        found.append(
            f"‖w‖² at the last walk is {spoken(sizes[0])} with batch norm and {spoken(sizes[1])} without, as geometric "
            "means over seeds."
        )
        return found

    def _short(self, best: Mapping[str, Mapping[int, Result]], spans: Mapping[str, Interval]) -> str:
        """How the lengths compare with the rates, and what is left of the ratios at lengths up to the plain rate."""
        norm, plain = best["norm"], best["plain"]
        rates = {arm: math.exp(fmean(math.log(parted(r.run)[1]) for r in best[arm].values())) for arm in _WORDS}
        longest = max(self.lengths)
        said = (
            f"The longest length is {spoken(longest / rates['plain'])} times the rate chosen without batch norm and "
            f"{spoken(longest / rates['norm'])} times that with it, as geometric means. An update goes the rate times "
            "its batch's gradient; with momentum 0.9 that gradient moves the weights up to ten times so far."
        )
        places = {
            seed: [place for place, length in enumerate(self.lengths) if length <= parted(result.run)[1]]
            for seed, result in plain.items()
        }
        if not all(places.values()):
            return f"{said} No length is as short as the rate chosen without batch norm in every seed."
        near = {
            name: ratio(norm, plain, lambda r, n=name: self._near(r, n, places[r.run.seed]))[1]  # type: ignore[misc]
            for name in _RAW
        }
        said += (
            " At lengths up to the rate chosen without batch norm in the seed alone, the ratios are "
            + "; ".join(f"{_RAW[name]} {span.times()}" for name, span in near.items())
            + "."
        )
        far = [_RAW[name] for name, span in near.items() if span.estimate > math.sqrt(spans[name].estimate) < 1]
        return f"{said} Longer ones make most of the ratio, in logarithms, of: {'; '.join(far)}." if far else said

    def _near(self, result: Result, name: str, places: Sequence[int]) -> float:
        """As :func:`_level`, from some of the lengths alone."""
        count = len(self.lengths)
        if name == "loss range":
            rows = _rows(result.numbers("losses by length"), count + 1)
            ranges = [[row[0], *(row[1 + place] for place in places)] for row in rows]
            return _log(median(max(losses) - min(losses) for losses in ranges))
        rows = _rows(result.numbers({"gradient change": "changes by length", "beta": "betas by length"}[name]), count)
        return _log(median(max(row[place] for place in places) for row in rows))

    def _losses(self, best: Mapping[str, Mapping[int, Result]], verdict: Verdict) -> Panels:
        panels = []
        edges: list[float] = []
        for arm, color in (("plain", 0), ("norm", 1)):
            steps = _walked(best[arm])
            low, high = (_over_seeds(best[arm], name, len(steps)) for name in ("lowest", "highest"))
            middle = [math.sqrt(below * above) for below, above in zip(low, high, strict=True)]
            edges += [*low, *high]
            line = Series("", steps, middle, color, low, high)
            panels.append(Curves(_WORDS[arm].capitalize(), "training steps", "loss on the way", [line], log_y=True))
        span = (min(edges) / 1.2, max(edges) * 1.2)
        title = {
            Verdict.REPRODUCED: "Along the gradient the loss has a smaller range with batch norm",
            Verdict.NOT_REPRODUCED: "Along the gradient the loss has no range smaller by a tenth with batch norm",
            Verdict.INCONCLUSIVE: "The range of the loss along the gradient",
        }[verdict]
        return Panels(
            title,
            [replace(panel, y_range=span) for panel in panels],
            note=(
                "The band spans the lowest and the highest loss at the eight lengths and the start of a walk, as "
                "geometric means over seeds; the line is its middle. Each arm at its best rate."
            ),
        )

    def _betas(self, best: Mapping[str, Mapping[int, Result]], cases: Mapping[str, Case]) -> Panels:
        panels = []
        for name, label in (("beta", "effective β"), ("beta w2", "β·‖w‖²")):
            lines = []
            for arm, color in (("plain", 0), ("norm", 1)):
                steps = _walked(best[arm])
                rows = [[_log(value) for value in result.numbers(name)[: len(steps)]] for result in best[arm].values()]
                looks = list(zip(*rows, strict=True))
                lines.append(
                    Series(
                        _WORDS[arm],
                        steps,
                        [math.exp(fmean(look)) for look in looks],
                        color,
                        [math.exp(min(look)) for look in looks],
                        [math.exp(max(look)) for look in looks],
                    )
                )
            panels.append(Curves(label, "training steps", label, lines, log_y=True))
        both = [name in cases and cases[name].verdict is Verdict.REPRODUCED for name in ("beta", "beta w2")]
        title = (
            "β is smaller with batch norm, also when corrected for the length of the weights"
            if all(both)
            else "β is smaller with batch norm; when corrected for the length of the weights that is not shown"
            if both[0]
            else "β during training, with and without batch norm"
        )
        return Panels(
            title,
            panels,
            note="Geometric mean over seeds; the band spans the lowest and highest seed. Each arm at its best rate.",
        )

    def _ratios(
        self, spans: Mapping[str, Interval], at_rate: Mapping[float, Mapping[str, Interval]], verdict: Verdict
    ) -> Intervals:
        rows = [Row(f"{label}, best rates", *spans[name].numbers, 1) for name, label in (_RAW | _FREE).items()]
        rows += [
            Row(f"{label}, both at {rate:g}", *found[name].numbers, 3)
            for rate, found in at_rate.items()
            for name, label in (("beta", "effective β"), ("beta w2", "β·‖w‖²"))
        ]
        return Intervals(
            "Everything that the paper measures along the gradient is smaller with batch norm"
            if verdict is Verdict.REPRODUCED
            else "What is measured along the gradient, with batch norm against without",
            "with batch norm over without",
            rows,
            1.0,
            "no difference",
            log_x=True,
            note="Medians over a training; 95% intervals over seeds.",
        )


def _log(value: float) -> float:
    return math.log(max(value, _LEAST))


def _level(result: Result, name: str) -> float:
    """The logarithm of a measure's median over the walks of a training."""
    return _log(median(result.numbers(name)))


def _at_first(result: Result, name: str) -> float:
    """The logarithm of a measure before the first update."""
    return _log(result.numbers(name)[0])


def _rows(values: Sequence[float], width: int) -> list[Sequence[float]]:
    return [values[start : start + width] for start in range(0, len(values), width)]


def _walked(arm: Mapping[int, Result]) -> list[float]:
    """The steps that all seeds walked at."""
    return min((result.numbers("walked") for result in arm.values()), key=len)


def _over_seeds(arm: Mapping[int, Result], name: str, count: int) -> list[float]:
    rows = [[_log(max(value, 1e-6)) for value in result.numbers(name)[:count]] for result in arm.values()]
    return [math.exp(fmean(look)) for look in zip(*rows, strict=True)]


CLAIM = Smoothness()
