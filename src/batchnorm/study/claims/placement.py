"""Batch norm before or after the activation: does the order matter?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import ClassVar

from torch import Tensor

from ...report.chart import Curves, Figure, Intervals, Panels, Row, Series
from ...report.number import signed
from ..apparatus.orders import ORDERS, neighbours, ordered
from ..arms import norms
from ..claim import About, Conclusion, Effect, Report, Result, Run, SubjectClaim, Topic, Value, Verdict, by_arm
from ..data import Source, Split, split
from ..learning import LEARNT, SHARE, baseline, learnt, shortfall
from ..percent import axis, difference_error
from ..search import ends
from ..statistics import CONFIDENCE, Interval, paired
from ..subjects import Dense, Subject
from ..training import Recipe, train

__all__ = ["CLAIM", "Placement", "blanked", "two_one_sided"]

# Of the network that is looked at, in words: an own one has whatever activations it has.
_OWN = "own"
_WORDS = {"relu": "ReLU", "sigmoid": "sigmoid", _OWN: "its activations"}

# What an activation can say, by rank: where nothing was learnt nothing is known, whatever the other one says.
_VERDICTS = (Verdict.INCONCLUSIVE, Verdict.NOT_REPRODUCED, Verdict.INCONCLUSIVE, Verdict.REPRODUCED)


def blanked(parts: Split, every: int) -> Split:
    """Every so many-th image of each part becomes 0 all over, so that nothing can tell its class; labels stay.

    The order of images is drawn by the seed, so all classes lose their share.
    """

    def blank(images: Tensor) -> Tensor:
        images = images.clone()
        images[::every] = 0
        return images

    train_part, validation, test = (
        (blank(images), labels) for images, labels in (parts.train, parts.validation, parts.test)
    )
    return Split(train_part, validation, test)


def two_one_sided(span: Interval) -> Interval:
    """The 90% interval of the same values, which two one-sided tests at 5% each compare with a margin.

    That a difference lies below the margin and that it lies above minus the margin are two tests; both reject at 5%
    exactly if this interval lies inside (Schuirmann 1987, Journal of Pharmacokinetics and Biopharmaceutics 15).
    """
    from scipy.stats import t  # noqa: PLC0415 - a tool; the library itself does not need scipy

    if span.count == 1:
        return span
    freedom = span.count - 1
    share = float(t.ppf(0.95, freedom) / t.ppf(0.5 + CONFIDENCE / 2, freedom))
    half = share * (span.high - span.low) / 2
    return Interval(span.estimate, span.estimate - half, span.estimate + half, span.count)


@dataclass(frozen=True, kw_only=True)
class Placement(SubjectClaim):
    """Trains the same network with batch norm before and after the activation, for ReLU and for sigmoid.

    Args:
        subject: The network, with ReLU; or one with any activations.
        other: The same with sigmoid; None where the network is not the study's.
        relu_rates: Learning rates at the first step that both orders are searched over.
        sigmoid_rates: The same with sigmoid, where the two orders want very different ones.
        steps: Updates of each run.
        every: Steps between two looks at the validation split.
        blank: The arms named "after" see every so many-th image blank: the effect removed. None where it is 0.
        margin: Percentage points of test accuracy that count as no difference, at most.
        part: Of what guessing leaves to be learnt, what the margin is at most.
        share: Of the way from guessing to 100%, what a network must come for a comparison to mean anything.
        moved: The share of a network's norms that must change places for the same.
    """

    subject: Subject = Dense((100, 100))
    other: Subject | None = Dense((100, 100), "sigmoid")
    relu_rates: tuple[float, ...] = (0.03, 0.1, 0.4, 1.0)
    sigmoid_rates: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0, 3.0)
    steps: int = 750
    every: int = 50
    blank: int = 0
    margin: float = 1.0
    part: float = 0.05
    share: float = SHARE
    moved: float = 0.5

    about: ClassVar[About] = About(
        id="placement",
        topic=Topic.CONTESTED,
        title="Batch norm before or after the activation: the order matters little",
        statement=(
            "Batch norm can stand between a layer and its activation, as in the paper, or behind the activation. "
            "Opinions differ on which is better; the claim is that it hardly matters, whichever the activation."
        ),
        formula=(
            r"\text{before: } \phi(\operatorname{BN}(W u + b)) \qquad \text{after: } \operatorname{BN}(\phi(W u + b)) "
            r"\qquad \phi \in \{\text{ReLU}, \text{sigmoid}\}"
        ),
        symbols="Here u goes into a layer with weights W and bias b, φ is its activation, and BN is batch norm.",
        source=(
            "Ioffe & Szegedy 2015 (arXiv 1502.03167), Section 3.2, puts batch norm before the activation; that the "
            "order matters little is common advice, not a result of that paper"
        ),
        paper=None,
        setup=(
            "The network has batch norm before each activation, and after it; the study's own is trained with ReLU "
            "(He's initialisation) and with sigmoid (Glorot's). In a network of yours, the norms with an activation "
            "directly beside them change places with it. SGD with momentum 0.9, batches of 60, 750 steps, the "
            "learning rate falling in a straight line to 0. Each order is searched over the same rates, 0.03, 0.1, 0.4 "
            "and 1 (with sigmoid 0.03, 0.1, 0.3, 1 and 3): in each seed, the rate with the best validation accuracy. "
            "(A first study on these seeds had shorter grids, which many choices were an end of, so they were widened "
            "by a step to both sides.) Both orders of a seed have the same split, initial weights and batch order. The "
            "study's network is fully connected, because that can be trained out in the time there is: in a pilot on "
            "other seeds of the default data, small convolutional networks differed by points after 400 steps and "
            "hardly after 1,000, which is a difference of speed and not of the result. The test split is used once a "
            "run, with the weights that were best on the validation split."
        ),
        metric="test accuracy, batch norm after minus before the activation, each order at its best rate",
        direction="no difference: within the margin, 1 percentage point or less, either way",
        pass_rule=(
            "An equivalence test for each activation, paired by seed. The margin is 1 percentage point, or a "
            "twentieth of what guessing leaves (100% minus the share of the most frequent class) where that is less. "
            "A much smaller one could not be told: of 1,000 test images, as on the default data, two networks that "
            "are right on 95% and share no error differ in one seed with a standard error of √(0.05 + 0.05)/√1000, 1.0 "
            "points, and over five seeds of 0.45. Reproduced: the 90% interval of the difference (two one-sided tests "
            "at 5%) lies inside the margin for both activations, and every network compared has learnt. Not "
            "reproduced: the 95% interval lies outside the margin for at least one. Otherwise inconclusive; so too if "
            "neither order has learnt with an activation, in any seed, or fewer than half of the norms of a network of "
            "yours have an activation beside them. " + LEARNT
        ),
        control=(
            "The arms named after see every fourth image blank, in training and afterwards, and on those can only "
            "guess. As a network that has learnt comes at least a quarter of the way from guessing to 100%, this costs "
            "a sixteenth of that way or more, and the margin is at most a twentieth of it: whatever the data, there is "
            "a difference to be found wherever there is something to learn. (To take batch norm away instead would be "
            "no such control, as a pilot showed that two layers train well without it; nor would taking away the "
            "activation be one, as some data need none.)"
        ),
        budget=95,
        smallest=60,
    )

    def without_effect(self) -> Placement:
        """The arms named after see every fourth image blank."""
        return replace(self, blank=4)

    def on(self, subject: Subject) -> Placement:
        """The same claim about another network, with the activations that it has."""
        return replace(self, subject=subject, other=None)

    def check(self, parts: Split) -> None:
        """Refuses a network none of whose norms has an activation beside it, besides what every claim refuses."""
        super().check(parts)
        neighbours(self.subject.build(parts, 0), parts.train[0][:2])

    def _networks(self) -> dict[str, Subject]:
        return {_OWN: self.subject} if self.other is None else {"relu": self.subject, "sigmoid": self.other}

    def _rates(self) -> dict[str, tuple[float, ...]]:
        return {name: self.sigmoid_rates if name == "sigmoid" else self.relu_rates for name in self._networks()}

    def plan(self, seeds: Sequence[int], data: Source | None) -> list[Run]:
        """One run an activation, order, learning rate and seed."""
        return [
            Run(self.about.id, f"{activation} {order} {rate:g}", seed, data)
            for seed in seeds
            for activation, rates in self._rates().items()
            for order in ORDERS
            for rate in rates
        ]

    def execute(self, run: Run, report: Report) -> dict[str, Value]:
        """Trains one network."""
        activation, order, rate = run.arm.split()
        parts = split(run.source, run.seed)
        if self.blank and order == "after":
            parts = blanked(parts, self.blank)
        model, images = self._networks()[activation].build(parts, run.seed), parts.train[0][:2]
        moved = len(neighbours(model, images).pairs) / len(norms(model))
        model = ordered(model, images, order)
        recipe = Recipe(float(rate), steps=self.steps, every=self.every, decay=True)
        history = train(model, parts, recipe, seed=run.seed, report=report)
        return history.values() | baseline(parts) | {"moved": moved}

    def conclude(self, results: Sequence[Result]) -> Conclusion:
        """Tests equivalence for each activation."""
        runs = by_arm(results)
        seeds = sorted({result.run.seed for result in results})
        tuned: dict[str, dict[str, list[Result]]] = {}
        for activation, rates in self._rates().items():
            tuned[activation] = {
                order: [
                    max((runs[f"{activation} {order} {rate:g}"][seed] for rate in rates), key=_best) for seed in seeds
                ]
                for order in ORDERS
            }
        margin = self._margin(results)
        spans = {activation: _difference(orders, "test").scaled(100) for activation, orders in tuned.items()}
        # The activation that decides comes first; of two that say the same, the one whose interval reaches farther.
        ranks = {activation: self._rank(tuned[activation], span, margin) for activation, span in spans.items()}
        first = sorted(spans, key=lambda activation: (ranks[activation], -_reach(spans[activation])))
        effects = [
            Effect(
                f"Test accuracy with {_WORDS[activation]}, each at its best rate: batch norm after minus before",
                spans[activation],
                "points",
                f"90% interval {signed(two_one_sided(spans[activation]).low)} to "
                f"{signed(two_one_sided(spans[activation]).high)}",
            )
            for activation in first
        ]
        for activation, orders in tuned.items():
            best = _difference(orders, "best").scaled(100)
            effects.append(
                Effect(f"Best validation accuracy with {_WORDS[activation]}: after minus before", best, "points")
            )
        # Pairs at one rate show what the choice of the rate adds.
        for activation, rates in self._rates().items():
            for rate in rates:
                pair = {order: list(runs[f"{activation} {order} {rate:g}"].values()) for order in ORDERS}
                name = f"Test accuracy with {_WORDS[activation]}, both at rate {rate:g}: after minus before"
                effects.append(Effect(name, _difference(pair, "test").scaled(100), "points"))
        moved = min(result.number("moved") for result in results)
        reason = self._reason(tuned, spans, margin)
        if moved < self.moved:
            reason += f" But only {100 * moved:.0f}% of the norms have an activation beside them and changed places."
        return Conclusion(
            Verdict.INCONCLUSIVE if moved < self.moved else _VERDICTS[min(ranks.values())],
            reason,
            effects,
            self._charts(tuned, effects, margin),
            self._findings(tuned, spans, margin, effects),
        )

    def _margin(self, results: Sequence[Result]) -> float:
        """In percentage points."""
        left = min(1 - result.number("guessing") for result in results)
        return min(self.margin, 100 * self.part * left)

    def _rank(self, orders: Mapping[str, Sequence[Result]], span: Interval, margin: float) -> int:
        """What one activation says, as a place in ``_VERDICTS``: the lowest of both activations is the verdict."""
        have = {order: [learnt(result, self.share) for result in runs] for order, runs in orders.items()}
        if not all(before or after for before, after in zip(have["before"], have["after"], strict=True)):
            return 0
        if span.low > margin or span.high < -margin:
            return 1
        equal = _reach(span) < margin and all(have["before"]) and all(have["after"])
        return 3 if equal else 2

    def _reason(
        self, tuned: Mapping[str, Mapping[str, Sequence[Result]]], spans: Mapping[str, Interval], margin: float
    ) -> str:
        differences = "; ".join(
            f"{_WORDS[activation]}: after minus before {signed(span.estimate)} points of test accuracy "
            f"(95% interval {signed(span.low)} to {signed(span.high)}, 90% interval "
            f"{signed(two_one_sided(span).low)} to {signed(two_one_sided(span).high)})"
            for activation, span in spans.items()
        )
        reason = f"{differences}; the margin is ±{margin:.2g}."
        lacking = [
            f"with {_WORDS[activation]}, batch norm {order}, a network stayed at {shortfall(result, self.share)}"
            for activation, orders in tuned.items()
            for order in ORDERS
            for result in orders[order]
            if not learnt(result, self.share)
        ]
        return f"{reason} But not every network has learnt: {lacking[0]}." if lacking else reason

    def _findings(
        self,
        tuned: Mapping[str, Mapping[str, Sequence[Result]]],
        spans: Mapping[str, Interval],
        margin: float,
        effects: Sequence[Effect],
    ) -> list[str]:
        chosen = "; ".join(
            f"{_WORDS[activation]}, {order}: {', '.join(result.run.arm.split()[2] for result in orders[order])}"
            for activation, orders in tuned.items()
            for order in ORDERS
        )
        rates = self._rates()
        searched = [
            (float(result.run.arm.split()[2]), rates[activation])
            for activation, orders in tuned.items()
            for runs in orders.values()
            for result in runs
        ]
        found = [f"Rates chosen on the validation split, seed by seed: {chosen}. {ends(searched)}"]
        images = min(int(result.number("test images")) for result in next(iter(tuned.values()))["before"])
        exact = []
        for activation, orders in tuned.items():
            before, after = ([result.number("test") for result in orders[order]] for order in ORDERS)
            apart = [100 * (ours - theirs) for ours, theirs in zip(after, before, strict=True)]
            error = difference_error(fmean(before), fmean(after), images)
            measured = f", and seeds vary by {stdev(apart):.2f} (standard deviation)" if len(apart) > 1 else ""
            exact.append(f"{error:.2f} points with {_WORDS[activation]}{measured}")
        found.append(
            f"One seed tests on {images:,} images. From that alone the difference in one seed has a standard error of "
            f"at most {'; '.join(exact)}. The margin is {margin:.2g}."
        )
        if wide := [_WORDS[activation] for activation, span in spans.items() if _open(span, margin)]:
            found.append(
                "Not to have found a difference is not to have found that there is none: the interval reaches over "
                f"the margin with {' and '.join(wide)}, so there the question stays open."
            )
        at_one_rate = _at_one_rate(effects, list(tuned))
        found.append(f"Compared at one rate instead, after minus before is, over the rates, {at_one_rate}.")
        return found

    def _charts(
        self, tuned: Mapping[str, Mapping[str, Sequence[Result]]], effects: Sequence[Effect], margin: float
    ) -> list[Figure]:
        drawn = []
        for activation in tuned:
            title = _WORDS[activation].capitalize() if activation != "relu" else "ReLU"
            lines = []
            for order, color in zip(ORDERS, (1, 2), strict=True):
                curves = [result.numbers("validation") for result in tuned[activation][order]]
                looks = [[100 * value for value in look] for look in zip(*curves, strict=True)]
                lines.append(
                    Series(
                        order,
                        tuned[activation][order][0].numbers("steps"),
                        [sum(look) / len(look) for look in looks],
                        color,
                        [min(look) for look in looks],
                        [max(look) for look in looks],
                    )
                )
            drawn.append((title, lines))
        # One range for both, so that the pictures can be compared.
        edges = axis(line for _, lines in drawn for line in lines)
        panels = [
            Curves(title, "training steps", "validation accuracy (%)", lines, y_range=edges) for title, lines in drawn
        ]
        rows = [
            Row(e.name.split(",")[0].removeprefix("Test accuracy with "), *e.interval.numbers)
            for e in effects
            if "each at its best rate" in e.name
        ]
        return [
            Intervals(
                "Test accuracy, batch norm after minus before the activation",
                "percentage points",
                rows,
                0.0,
                "no difference",
                note=f"95% intervals over seeds. The margin of the equivalence test is ±{margin:.2g} points.",
            ),
            Panels(
                "Validation accuracy during training, batch norm before and after the activation",
                panels,
                note="Each order at its best rate. Mean over seeds; the band spans the lowest and the highest seed.",
            ),
        ]


def _at_one_rate(effects: Sequence[Effect], networks: Sequence[str]) -> str:
    """The range of the differences at equal rates, by activation."""
    spans = []
    for word in (_WORDS[name] for name in networks):
        values = [e.interval.estimate for e in effects if e.name.startswith(f"Test accuracy with {word}, both at")]
        spans.append(f"{signed(min(values))} to {signed(max(values))} points with {word}")
    return " and ".join(spans)


def _reach(span: Interval) -> float:
    """How far from no difference the 90% interval reaches."""
    narrow = two_one_sided(span)
    return max(abs(narrow.low), abs(narrow.high))


def _open(span: Interval, margin: float) -> bool:
    """Whether a difference is neither found inside the margin nor outside."""
    return _reach(span) >= margin and span.low <= margin and span.high >= -margin


def _best(result: Result) -> float:
    return result.number("best")


def _difference(orders: Mapping[str, Sequence[Result]], what: str) -> Interval:
    after, before = ([result.number(what) for result in orders[order]] for order in ("after", "before"))
    return paired(after, before)


CLAIM = Placement()
