"""What to change besides adding batch norm: the paper's list, whole and with one item at a time taken back."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ...report.chart import Curves, Figure, Intervals, Panels, Row, Series
from ...report.number import signed, spoken
from ..apparatus.dropout import with_dropout
from ..arms import derive
from ..claim import About, Conclusion, Effect, Report, Result, Run, SubjectClaim, Topic, Value, Verdict, by_arm
from ..data import Source, split
from ..learning import LEARNT, SHARE, baseline, learnt, shortfall
from ..percent import axis
from ..search import ends
from ..statistics import Interval, interval, paired
from ..subjects import Stack, Subject
from ..training import Recipe, shuffled, train

__all__ = ["CLAIM", "Ingredients", "fixed_batches"]

#: The list, by the words with which an item is taken back.
INGREDIENTS = ("rate", "dropout", "L2", "decay", "shuffling")

_NETWORK = Stack(((8, 2), (16, 2), (32, 2)))
_PLAIN, _ADDED, _WHOLE, _LISTED = "plain", "added", "whole", "listed"
_NAMES = {
    "rate": "the lower learning rate",
    "dropout": "dropout",
    "L2": "more L2",
    "decay": "no decay of the rate",
    "shuffling": "fixed batches",
}


def fixed_batches(size: int) -> Callable[[Tensor, torch.Generator], Tensor]:
    """An order for :func:`batchnorm.study.training.train`: batches are drawn once, and only their order is drawn anew.

    What is left over of the last batch is never seen.
    """
    drawn: list[Tensor] = []

    def order(labels: Tensor, generator: torch.Generator) -> Tensor:
        if not drawn:
            drawn.append(shuffled(labels, generator)[: len(labels) // size * size].reshape(-1, size))
        return drawn[0][torch.randperm(len(drawn[0]), generator=generator)].flatten()

    return order


@dataclass(frozen=True, kw_only=True)
class Ingredients(SubjectClaim):
    """Trains one network by the plain recipe, with batch norm merely added, and by the list, whole and less one.

    And without batch norm by the whole list, which tells whether the list has to do with batch norm.

    Args:
        subject: The network.
        rates: Learning rates of the plain recipe.
        faster: The list's factor on them.
        dropout: Rate of the plain recipe's dropout; the list has none.
        weight_decay: Of the plain recipe.
        less: What the list divides it by.
        steps: Updates of each run.
        every: Steps between two looks at the validation split.
        alike: Every arm has the plain recipe: the effect removed.
        worthwhile: The ratio of steps that must be undercut.
        share: Of the way from guessing to 100%, what the networks compared must come.
    """

    subject: Subject = _NETWORK
    rates: tuple[float, ...] = (0.03, 0.1, 0.3)
    faster: float = 5.0
    dropout: float = 0.4
    weight_decay: float = 5e-4
    less: float = 5.0
    steps: int = 300
    every: int = 10
    alike: bool = False
    worthwhile: float = 0.9
    share: float = SHARE

    arms_of_subject: ClassVar[tuple[str, ...]] = ("batch", "none")

    about: ClassVar[About] = About(
        id="ingredients",
        topic=Topic.DOES,
        title="Batch norm pays off in full only if the recipe changes with it",
        statement=(
            "To add batch norm to a network alone does not take full advantage of it. The paper lists what else to "
            "change: a higher learning rate, no dropout, less L2 regularisation, a faster decay of the learning rate, "
            "and training images shuffled more thoroughly, so that the same ones do not always meet in a batch. The "
            "verdict is on the list as a whole; what each item adds is measured by taking it back alone, and may well "
            "be nothing."
        ),
        formula=(
            r"\frac{\text{steps of the whole list to } A}{\text{steps of batch norm merely added to } A} < 0.9, \qquad "
            r"A = \max_t \text{accuracy}_{\text{added}}(t)"
        ),
        symbols="Here A is the best validation accuracy of the network with batch norm merely added, in that seed.",
        source="Ioffe & Szegedy 2015 (arXiv 1502.03167), Section 4.2.1",
        paper=(
            "As reported in secondary sources: Inception with batch norm merely added needed 13.3 million steps to "
            "72.2% on ImageNet, and with the list, at five times the learning rate, 2.1 million. The paper's text puts "
            "what shuffling adds at about 1% of validation accuracy. Here a far smaller network learns in 300 steps: "
            "only directions can be compared. The list's items on local response normalisation and on distorted "
            "images have nothing here that they could change."
        ),
        setup=(
            "The plain recipe: SGD with momentum 0.9 at a constant learning rate, batches of 60, 300 steps, L2 "
            "regularisation of 0.0005 on every parameter, dropout of 0.4 before the last linear layer (or the "
            "network's own where it has dropout modules), and batches drawn once, which only come in another order in "
            "each epoch. The list: five times the rate, which falls in a straight line to 0; no dropout; a fifth of "
            "the L2; batches drawn anew in each epoch. (The paper decays six times faster than before; here one recipe "
            "decays and the other does not.) In each seed the plain recipe's rate is the one of 0.03, 0.1 and 0.3 with "
            "which the network without batch norm has the best validation accuracy. With batch norm the network is "
            "trained at that rate by the plain recipe, by the list, and by the list with each item taken back. "
            "Without batch norm it is trained by the whole list too, at five times each of the three rates; this arm "
            "was added after results on seeds 0 to 4 had been seen, to tell whether the list has to do with batch "
            "norm, and is no part of the verdict. All arms of a seed have the same split and first weights. The test "
            "split plays no part in any choice: it is used once a run, with the weights that were best on the "
            "validation split. A pilot (seed 100 of the default data, 500 steps) chose the rates and showed that the "
            "list as a whole was faster, and L2 and shuffling hardly mattered; the list's own figures and the rule "
            "were there before."
        ),
        metric=(
            "steps to the best validation accuracy of the network with batch norm merely added, looked at every 10 "
            "steps; test accuracy"
        ),
        direction="fewer steps with the whole list, by a tenth at least: a ratio below 0.9",
        pass_rule=(
            "Between the whole list and batch norm merely added, paired by seed, in logarithms. Reproduced: the "
            "network with the list gets there in every seed, and the 95% interval of the ratio lies below 0.9. Not "
            "reproduced: it does not get there in more than half of the seeds, or the interval lies above 0.9. "
            "Otherwise, or if one of the two has not learnt in some seed, inconclusive. A run that never gets there "
            "counts with its last step. The single items are no part of the verdict: an item helps, or harms, where "
            "the 95% interval of what taking it back does lies on one side of no change; with five items and two "
            "measures, at least one of the ten comes out so by chance in four studies of ten. " + LEARNT
        ),
        control="Every arm has the plain recipe, at the plain rate.",
        budget=240,
        tier="full",
        smallest=60,
    )

    def without_effect(self) -> Ingredients:
        """The plain recipe everywhere."""
        return replace(self, alike=True)

    def _arms(self) -> dict[str, tuple[str, float]]:
        """Each arm's kind and the plain rate that it belongs to."""
        kinds = (_PLAIN, _ADDED, _WHOLE, *INGREDIENTS, _LISTED)
        return {_arm(kind, rate): (kind, rate) for kind in kinds for rate in self.rates}

    def plan(self, seeds: Sequence[int], data: Source | None) -> list[Run]:
        """One run a recipe, plain rate and seed."""
        return [Run(self.about.id, arm, seed, data) for seed in seeds for arm in self._arms()]

    def execute(self, run: Run, report: Report) -> dict[str, Value]:
        """Trains one network by one recipe."""
        kind, rate = self._arms()[run.arm]
        plain = kind in (_PLAIN, _ADDED) or self.alike
        listed = () if plain else tuple(item for item in INGREDIENTS if item != kind)
        parts = split(run.source, run.seed)
        model = derive(self.subject.build(parts, run.seed), "none" if kind in (_PLAIN, _LISTED) else "batch")
        own = [module for module in model.modules() if isinstance(module, nn.modules.dropout._DropoutNd)]
        dropped = bool(own)
        if "dropout" in listed:
            for module in own:
                module.p = 0.0
        elif not own:
            dropped = with_dropout(model, "before last", self.dropout, parts.train[0][:2])
        recipe = Recipe(
            rate * (self.faster if "rate" in listed else 1.0),
            steps=self.steps,
            every=self.every,
            decay="decay" in listed,
            weight_decay=self.weight_decay / (self.less if "L2" in listed else 1.0),
        )
        order = shuffled if "shuffling" in listed else fixed_batches(recipe.batch_size)
        history = train(model, parts, recipe, seed=run.seed, report=report, order=order)
        return history.values() | baseline(parts) | {"dropped": dropped}

    def conclude(self, results: Sequence[Result]) -> Conclusion:
        """Compares the whole list with batch norm merely added, and with itself less one item."""
        arms = by_arm(results)
        seeds = sorted({result.run.seed for result in results})
        rate = {seed: max(self.rates, key=lambda own: arms[_arm(_PLAIN, own)][seed].number("best")) for seed in seeds}
        at = {
            kind: [arms[_arm(kind, rate[seed])][seed] for seed in seeds]
            for kind in (_PLAIN, _ADDED, _WHOLE, *INGREDIENTS, _LISTED)
        }
        targets = [result.number("best") for result in at[_ADDED]]
        main, reached = _ratio("Steps, the whole list against batch norm merely added", at[_WHOLE], at[_ADDED], targets)
        tuned = {kind: [self._tuned(arms, kind, seed) for seed in seeds] for kind in (_ADDED, _WHOLE, _LISTED)}
        own = [result.number("best") for result in tuned[_ADDED]]
        lacking = [result for kind in (_ADDED, _WHOLE) for result in at[kind] if not learnt(result, self.share)]
        steps = {
            item: _ratio(f"Steps, the list with {_NAMES[item]} against the whole list", at[item], at[_WHOLE], targets)[
                0
            ]
            for item in INGREDIENTS
        }
        points = {
            item: _points(f"Test accuracy, the list with {_NAMES[item]} minus the whole list", at[item], at[_WHOLE])
            for item in INGREDIENTS
        }
        effects = [
            main,
            _points("Test accuracy, the whole list minus batch norm merely added", at[_WHOLE], at[_ADDED]),
            _ratio(
                "Steps, the whole list against batch norm merely added, each at its best of three rates",
                tuned[_WHOLE],
                tuned[_ADDED],
                own,
            )[0],
            _points("Test accuracy, batch norm merely added minus no batch norm", at[_ADDED], at[_PLAIN]),
            *steps.values(),
            *points.values(),
        ]
        name = "without batch norm: the whole list {} the plain recipe, each at its best of three rates"
        best = [result.number("best") for result in at[_PLAIN]]
        saved, _ = _ratio(f"Steps, {name.format('against')}", tuned[_LISTED], at[_PLAIN], best)
        gained = _points(f"Test accuracy, {name.format('minus')}", tuned[_LISTED], at[_PLAIN])
        effects += [saved, gained, self._more(tuned, at[_PLAIN])]
        reason = (
            f"With the whole list the network needs {main.interval.estimate:.2f} times the steps "
            f"({main.interval.low:.2f} to {main.interval.high:.2f}) to the best validation accuracy of the one to "
            f"which batch norm was merely added ({100 * min(targets):.1f} to {100 * max(targets):.1f}%), and got there "
            f"in {reached} of {len(seeds)} seeds."
        )
        if lacking:
            reason += f" But a network stayed at {shortfall(lacking[0], self.share)}."
        verdict = Verdict.INCONCLUSIVE if lacking else self._verdict(main.interval, reached, len(seeds))
        findings = [
            *self._items(at, steps, points),
            self._without(saved, gained, at[_LISTED], at[_PLAIN]),
            *self._rates_found(arms, rate, seeds),
        ]
        return Conclusion(verdict, reason, effects, self._charts(at, steps, points), findings)

    def _verdict(self, ratio: Interval, reached: int, seeds: int) -> Verdict:
        if ratio.low > self.worthwhile or reached < seeds / 2:
            return Verdict.NOT_REPRODUCED
        return Verdict.REPRODUCED if reached == seeds and ratio.high < self.worthwhile else Verdict.INCONCLUSIVE

    def _tuned(self, arms: Mapping[str, Mapping[int, Result]], kind: str, seed: int) -> Result:
        return max((arms[_arm(kind, rate)][seed] for rate in self.rates), key=lambda result: result.number("best"))

    def _items(
        self, at: Mapping[str, Sequence[Result]], steps: Mapping[str, Effect], points: Mapping[str, Effect]
    ) -> list[str]:
        """What taking each item back does, in words."""
        found = []
        for item in INGREDIENTS:
            if item == "dropout" and not all(result.values["dropped"] for result in at[item]):
                found.append("No place for dropout was found in this network, so that item is not tested.")
                continue
            speed, accuracy = steps[item].interval, points[item].interval
            faster = _word(speed.low > 1, speed.high < 1, "costs steps", "saves steps", "no sure change in steps")
            better = _word(
                accuracy.high < 0, accuracy.low > 0, "costs accuracy", "gains accuracy", "no sure change in accuracy"
            )
            found.append(
                f"Back to {_NAMES[item]}: {faster} ({speed.estimate:.2f} times, {speed.low:.2f} to {speed.high:.2f}"
                f"{f'; {note}' if (note := steps[item].note) else ''}), "
                f"{better} ({signed(accuracy.estimate)} points of test accuracy, {signed(accuracy.low)} to "
                f"{signed(accuracy.high)})."
            )
        return found

    def _more(self, tuned: Mapping[str, Sequence[Result]], plain: Sequence[Result]) -> Effect:
        """What the list adds with batch norm beyond what it adds without."""
        name = "Test accuracy, what the list adds with batch norm minus what it adds without, each at its best rate"
        whole, added, listed, own = (
            [result.number("test") for result in runs] for runs in (tuned[_WHOLE], tuned[_ADDED], tuned[_LISTED], plain)
        )
        with_norm = [mine - theirs for mine, theirs in zip(whole, added, strict=True)]
        return Effect(name, paired(with_norm, [a - b for a, b in zip(listed, own, strict=True)]).scaled(100), "points")

    def _without(self, steps: Effect, points: Effect, at_rate: Sequence[Result], plain: Sequence[Result]) -> str:
        """What the whole list does without batch norm, in words."""
        speed, accuracy = steps.interval, points.interval
        told = (
            "Without batch norm, each at its best of three rates, the whole list "
            f"{_changes(speed, accuracy)} against the plain recipe "
            f"({speed.estimate:.2f} times the steps, {speed.low:.2f} to {speed.high:.2f}"
            f"{f'; {steps.note}' if steps.note else ''}; {signed(accuracy.estimate)} points of test accuracy, "
            f"{signed(accuracy.low)} to {signed(accuracy.high)})."
        )
        helps = speed.high < 1 or accuracy.low > 0
        harms = speed.low > 1 or accuracy.high < 0
        told += (
            " So the list does not need batch norm to be of use."
            if helps and not harms
            else " So there the list is of no sure use."
            if not helps
            else " So there it helps in one and harms in the other."
        )
        lacking = sum(not learnt(result, self.share) for result in at_rate)
        change = paired([result.number("test") for result in at_rate], [result.number("test") for result in plain])
        return told + (
            f" At {self.faster:g} times the plain recipe's own rate, as the arms with batch norm have it, test "
            f"accuracy changes by {signed(100 * change.estimate)} points"
            f"{f', and the network has not learnt in {lacking} of {len(at_rate)} seeds' if lacking else ''}."
        )

    def _rates_found(
        self, arms: Mapping[str, Mapping[int, Result]], rate: Mapping[int, float], seeds: Sequence[int]
    ) -> list[str]:
        chosen = ", ".join(spoken(found) for found in rate.values())
        own = {kind: [self._best_rate(arms, kind, seed) for seed in seeds] for kind in (_ADDED, _WHOLE, _LISTED)}
        best = {kind: ", ".join(spoken(found) for found in rates) for kind, rates in own.items()}
        return [
            f"The plain recipe's rates, chosen by the network without batch norm, seed by seed: {chosen}; the list has "
            f"{self.faster:g} times these. {self._ends(list(rate.values()))} With batch norm "
            f"the plain recipe would itself choose {best[_ADDED]}. {self._ends(own[_ADDED])} And the list would "
            f"choose {self.faster:g} times {best[_WHOLE]}. {self._ends(own[_WHOLE])} Each at its own best rate the "
            "comparison is among the effects. Without batch norm the list would choose "
            f"{self.faster:g} times {best[_LISTED]}. {self._ends(own[_LISTED])}"
        ]

    def _best_rate(self, arms: Mapping[str, Mapping[int, Result]], kind: str, seed: int) -> float:
        return float(self._tuned(arms, kind, seed).run.arm.split()[1])

    def _ends(self, rates: Sequence[float]) -> str:
        return ends([(rate, self.rates) for rate in rates])

    def _charts(
        self, at: Mapping[str, Sequence[Result]], steps: Mapping[str, Effect], points: Mapping[str, Effect]
    ) -> list[Figure]:
        lines = []
        for kind, label, color in (
            (_PLAIN, "no batch norm", 0),
            (_ADDED, "batch norm merely added", 2),
            (_WHOLE, "with the whole list", 1),
        ):
            values = 100 * np.array([result.numbers("validation") for result in at[kind]])
            so_far = np.maximum.accumulate(values, axis=1)
            low, high = so_far.min(0).tolist(), so_far.max(0).tolist()
            lines.append(Series(label, at[kind][0].numbers("steps"), so_far.mean(0).tolist(), color, low, high))
        return [
            Curves(
                "One network by the plain recipe, with batch norm added, and with the recipe changed too",
                "training steps",
                "best validation accuracy so far (%)",
                lines,
                y_range=axis(lines),
                note="Mean over seeds; the band spans the lowest and the highest seed.",
            ),
            Panels(
                "What taking one item of the list back does",
                [
                    Intervals(
                        "Steps to the same accuracy",
                        "times the whole list's steps",
                        [_row(item, steps[item]) for item in INGREDIENTS],
                        1.0,
                        "whole list",
                        log_x=True,
                    ),
                    Intervals(
                        "Test accuracy",
                        "percentage points against the whole list",
                        [_row(item, points[item]) for item in INGREDIENTS],
                        0.0,
                        "whole list",
                    ),
                ],
                note="95% intervals over seeds. An interval that holds the dotted line shows no change for sure.",
            ),
        ]


def _arm(kind: str, rate: float) -> str:
    return f"{kind} {rate:g}"


def _row(item: str, effect: Effect) -> Row:
    return Row(_NAMES[item], effect.interval.estimate, effect.interval.low, effect.interval.high)


def _ratio(name: str, own: Sequence[Result], other: Sequence[Result], targets: Sequence[float]) -> tuple[Effect, int]:
    """Ratio of steps to the target of each seed, and in how many the first gets there."""
    logs, reached, missed = [], 0, 0
    for mine, theirs, target in zip(own, other, targets, strict=True):
        (first, there), (second, also) = _steps_to(mine, target), _steps_to(theirs, target)
        logs.append(math.log(first / second))
        reached += there
        missed += not (there and also)
    note = f"in {missed} of {len(logs)} seeds one never got there and counts with its last step" if missed else ""
    return Effect(name, interval(logs).exponential(), "×", note, ratio=True), reached


def _steps_to(result: Result, target: float) -> tuple[float, bool]:
    """Steps until the validation accuracy first reaches the target, or all steps and False."""
    steps = result.numbers("steps")
    for step, value in zip(steps, result.numbers("validation"), strict=True):
        if value >= target:
            return step, True
    return steps[-1], False


def _points(name: str, own: Sequence[Result], other: Sequence[Result]) -> Effect:
    values = ([result.number("test") for result in runs] for runs in (own, other))
    return Effect(name, paired(*values).scaled(100), "points")


def _changes(steps: Interval, accuracy: Interval) -> str:
    speed = _word(steps.low > 1, steps.high < 1, "costs steps", "saves steps", "does not surely change the steps")
    return f"{speed} and " + _word(
        accuracy.high < 0, accuracy.low > 0, "costs accuracy", "gains accuracy", "does not surely change accuracy"
    )


def _word(more: bool, fewer: bool, first: str, second: str, neither: str) -> str:
    return first if more else second if fewer else neither


CLAIM = Ingredients()
