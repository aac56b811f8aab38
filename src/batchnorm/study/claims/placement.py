"""Batch norm before or after the activation: does the order matter?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from ...report.chart import Curves, Figure, Intervals, Panels, Row, Series
from ..claim import About, Claim, Conclusion, Effect, Report, Result, Run, Value, Verdict, by_arm
from ..data import Source, split
from ..networks import fully_connected
from ..statistics import CONFIDENCE, Interval, paired
from ..training import Recipe, train

__all__ = ["CLAIM", "Placement", "two_one_sided"]

_ORDERS = ("before", "after")


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


@dataclass(frozen=True)
class Placement(Claim):
    """Trains the same network with batch norm before and after the activation, for ReLU and for sigmoid.

    Args:
        hidden: Units of the hidden layers.
        relu_rates: Learning rates at the first step that both orders are searched over with ReLU.
        sigmoid_rates: The same with sigmoid, where the two orders want very different ones.
        steps: Updates of each run.
        every: Steps between two looks at the validation split.
        active: False takes the activation out of the arms named "after": the effect removed.
        margin: Percentage points of test accuracy that count as no difference.
        floor: Validation accuracy that every network must reach for a comparison to mean anything.
    """

    hidden: tuple[int, ...] = (100, 100)
    relu_rates: tuple[float, ...] = (0.1, 0.4)
    sigmoid_rates: tuple[float, ...] = (0.1, 0.3, 1.0)
    steps: int = 750
    every: int = 50
    active: bool = True
    margin: float = 1.0
    floor: float = 0.5

    about: ClassVar[About] = About(
        id="placement",
        title="Batch norm before or after the activation: the order matters little",
        statement=(
            "Batch norm can stand between a layer and its activation, as in the paper, or behind the activation. "
            "Opinions differ on which is better; the claim is that it hardly matters, whichever the activation."
        ),
        formula=(
            r"\text{before: } \phi(\operatorname{BN}(W u + b)) \qquad \text{after: } \operatorname{BN}(\phi(W u + b)) "
            r"\qquad \phi \in \{\text{ReLU}, \text{sigmoid}\}"
        ),
        source=(
            "Ioffe & Szegedy 2015 (arXiv 1502.03167), Section 3.2, puts batch norm before the activation; that the "
            "order matters little is common advice, not a result of that paper"
        ),
        paper=None,
        setup=(
            "Two hidden layers of 100 units, ReLU with He's initialisation or sigmoid with Glorot's, batch norm "
            "before or after each activation. SGD with momentum 0.9, batches of 60, 750 steps, the learning rate "
            "falling in a straight line to 0. Each order is searched over the same rates, 0.1 and 0.4 with ReLU, "
            "0.1, 0.3 and 1 with sigmoid: in each seed, the rate with the best validation accuracy. Both orders of a "
            "seed have the same split, initial weights and batch order. Fully connected, because this network can "
            "be trained out in the time there is: in a pilot on other seeds, small convolutional networks differed "
            "by points after 400 steps and hardly after 1,000, which is a difference of speed and not of the result. "
            "The test split is used once a run, with the weights that were best on the validation split."
        ),
        metric="test accuracy, batch norm after minus before the activation, each order at its best rate",
        direction="no difference: within 1 percentage point either way",
        pass_rule=(
            "An equivalence test with a margin of 1 percentage point, for each activation, paired by seed. One test "
            "split of 1,000 images has a standard error of 0.7 points at 95%, so less than a point it can hardly "
            "tell. Reproduced: the 90% interval of the difference (two one-sided tests at 5%) lies inside ±1 point "
            "for both activations. Not reproduced: the 95% interval lies outside ±1 point for at least one. "
            "Otherwise inconclusive; so too if both orders stay below 50% validation accuracy with an activation, "
            "in any seed."
        ),
        control=(
            "The arms named after have batch norm where the activation was, and no activation, so their network is "
            "linear and cannot be equivalent. If the rule still found it so, it would find everything equivalent. (To "
            "take batch norm away instead is no such control: a pilot showed that two layers train well without it.)"
        ),
        budget=55,
        smallest=60,
    )

    def without_effect(self) -> Placement:
        """The arms named after have no activation."""
        return replace(self, active=False)

    def _rates(self) -> dict[str, tuple[float, ...]]:
        return {"relu": self.relu_rates, "sigmoid": self.sigmoid_rates}

    def plan(self, seeds: Sequence[int], data: Source | None) -> list[Run]:
        """One run an activation, order, learning rate and seed."""
        return [
            Run(self.about.id, f"{activation} {order} {rate:g}", seed, data)
            for seed in seeds
            for activation, rates in self._rates().items()
            for order in _ORDERS
            for rate in rates
        ]

    def execute(self, run: Run, report: Report) -> dict[str, Value]:
        """Trains one network."""
        activation, order, rate = run.arm.split()
        parts = split(run.source, run.seed)
        model = fully_connected(
            (parts.train[0][0].numel(), *self.hidden, parts.classes),
            activation=activation if self.active or order == "before" else "linear",
            norm=order,
            seed=run.seed,
        )
        recipe = Recipe(float(rate), steps=self.steps, every=self.every, decay=True)
        history = train(model, parts, recipe, seed=run.seed, report=report)
        return {
            "steps": [float(step) for step in history.steps],
            "validation": list(history.validation),
            "best": max(history.validation),
            "test": history.test,
        }

    def conclude(self, results: Sequence[Result]) -> Conclusion:
        """Tests equivalence for both activations."""
        runs = by_arm(results)
        seeds = sorted({result.run.seed for result in results})
        tuned: dict[str, dict[str, list[Result]]] = {}
        for activation, rates in self._rates().items():
            tuned[activation] = {
                order: [
                    max((runs[f"{activation} {order} {rate:g}"][seed] for rate in rates), key=_best) for seed in seeds
                ]
                for order in _ORDERS
            }
        spans = {activation: _difference(orders, "test").scaled(100) for activation, orders in tuned.items()}
        trained = all(
            max(_best(before), _best(after)) >= self.floor
            for orders in tuned.values()
            for before, after in zip(orders["before"], orders["after"], strict=True)
        )
        words = {"relu": "ReLU", "sigmoid": "sigmoid"}
        effects = [
            Effect(
                f"Test accuracy with {words[activation]}, each at its best rate: batch norm after minus before",
                span,
                "points",
                f"90% interval {_number(two_one_sided(span).low)} to {_number(two_one_sided(span).high)}",
            )
            for activation, span in spans.items()
        ]
        # The one that decides is the one farther from no difference.
        effects.sort(key=lambda effect: -abs(effect.interval.estimate))
        for activation, orders in tuned.items():
            best = _difference(orders, "best").scaled(100)
            effects.append(
                Effect(f"Best validation accuracy with {words[activation]}: after minus before", best, "points")
            )
        # Pairs at one rate show what the choice of the rate adds.
        for activation, rates in self._rates().items():
            for rate in rates:
                pair = {order: list(runs[f"{activation} {order} {rate:g}"].values()) for order in _ORDERS}
                name = f"Test accuracy with {words[activation]}, both at rate {rate:g}: after minus before"
                effects.append(Effect(name, _difference(pair, "test").scaled(100), "points"))
        reason = (
            "; ".join(
                f"{words[activation]}: after minus before {_number(span.estimate)} points of test accuracy "
                f"(95% interval {_number(span.low)} to {_number(span.high)}, 90% interval "
                f"{_number(two_one_sided(span).low)} to {_number(two_one_sided(span).high)})"
                for activation, span in spans.items()
            )
            + f"; the margin is ±{self.margin:g}."
        )
        if not trained:
            reason += " But with one activation neither order trained, so there is nothing to compare."
        chosen = "; ".join(
            f"{words[activation]}, {order}: {', '.join(result.run.arm.split()[2] for result in orders[order])}"
            for activation, orders in tuned.items()
            for order in _ORDERS
        )
        return Conclusion(
            self._verdict(list(spans.values()), trained),
            reason,
            effects,
            self._charts(tuned, effects),
            [
                f"Rates chosen on the validation split, seed by seed: {chosen}.",
                "Not to have found a difference is not to have found that there is none: where the interval is wider "
                "than the margin, as it easily is with few seeds and 1,000 test images, the question stays open.",
                f"Compared at one rate instead, after minus before is, over the rates, {self._at_one_rate(effects)}.",
            ],
        )

    def _at_one_rate(self, effects: Sequence[Effect]) -> str:
        """The range of the differences at equal rates, by activation."""
        spans = []
        for word in ("ReLU", "sigmoid"):
            values = [e.interval.estimate for e in effects if e.name.startswith(f"Test accuracy with {word}, both at")]
            spans.append(f"{_number(min(values))} to {_number(max(values))} points with {word}")
        return " and ".join(spans)

    def _verdict(self, spans: Sequence[Interval], trained: bool) -> Verdict:
        if not trained:
            return Verdict.INCONCLUSIVE
        if any(span.low > self.margin or span.high < -self.margin for span in spans):
            return Verdict.NOT_REPRODUCED
        narrow = [two_one_sided(span) for span in spans]
        inside = all(-self.margin < span.low and span.high < self.margin for span in narrow)
        return Verdict.REPRODUCED if inside else Verdict.INCONCLUSIVE

    def _charts(self, tuned: Mapping[str, Mapping[str, Sequence[Result]]], effects: Sequence[Effect]) -> list[Figure]:
        panels = []
        for activation, title in (("relu", "ReLU"), ("sigmoid", "Sigmoid")):
            lines = []
            for order, color in zip(_ORDERS, (1, 2), strict=True):
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
            panels.append(Curves(title, "training steps", "validation accuracy (%)", lines, y_range=(70, 100)))
        rows = [
            Row(e.name.split(",")[0].removeprefix("Test accuracy with "), *_values(e.interval))
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
                note=f"95% intervals over seeds. The margin of the equivalence test is ±{self.margin:g} point.",
            ),
            Panels(
                "Validation accuracy during training, batch norm before and after the activation",
                panels,
                note="Each order at its best rate. Mean over seeds; the band spans the lowest and the highest seed.",
            ),
        ]


def _best(result: Result) -> float:
    return result.number("best")


def _difference(orders: Mapping[str, Sequence[Result]], what: str) -> Interval:
    after, before = ([result.number(what) for result in orders[order]] for order in ("after", "before"))
    return paired(after, before)


def _number(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _values(span: Interval) -> tuple[float, float, float]:
    return span.estimate, span.low, span.high


CLAIM = Placement()
