"""Ghost batches: does a large batch generalise better when it is normalised as small ones are?"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import ClassVar, TypeAlias

from ...report.chart import Curves, Figure, Intervals, Row, Series
from ..apparatus import searched
from ..apparatus.averaged import Averaged
from ..apparatus.last_weights import to_the_end
from ..apparatus.small_parts import check_rows, normalised_by
from ..claim import About, Conclusion, Effect, Report, Result, Run, SubjectClaim, Topic, Value, Verdict
from ..data import Source, Split, split
from ..learning import LEARNT, SHARE, learnt, shortfall
from ..statements import Case, joined, rank
from ..statistics import interval
from ..subjects import Dense, Subject
from ..training import Recipe

__all__ = ["CLAIM", "Ghost"]

_Value: TypeAlias = Callable[[Result], float]

_LENGTHS = ("epochs", "updates")
_WORDS = {
    "small": "the small batch",
    "batch epochs": "large batch, whole, equal epochs",
    "ghost epochs": "large batch, ghost batches, equal epochs",
    "batch updates": "large batch, whole, equal updates",
    "ghost updates": "large batch, ghost batches, equal updates",
}


@dataclass(frozen=True, kw_only=True)
class Ghost(SubjectClaim):
    """Trains one network by small and by large batches, these normalised as a whole and by ghost batches.

    Args:
        subject: The network.
        small: Images an update of the small batch, and of a ghost batch.
        large: Images an update of the large batch.
        updates: Of the small batch, and of the large one at equal updates.
        small_rates: Learning rates at the first step that the small batch is searched over.
        epoch_rates: The same of the large batch at equal epochs, whole and with ghost batches.
        update_rates: The same at equal updates.
        ghosts: False normalises the arms of ghost batches as a whole too: the effect removed.
        share: Of the way from guessing to 100%, what the large batch must come, whole or in ghost batches.
    """

    subject: Subject = Averaged(Dense((100, 100)))
    small: int = 32
    large: int = 1024
    updates: int = 384
    small_rates: tuple[float, ...] = (0.03, 0.1, 0.3)
    epoch_rates: tuple[float, ...] = (0.3, 1.0, 3.0)
    update_rates: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0)
    ghosts: bool = True
    share: float = SHARE

    arms_of_subject: ClassVar[tuple[str, ...]] = ("batch", "ghost")
    about: ClassVar[About] = About(
        id="ghost",
        topic=Topic.HURTS,
        title="Ghost batches win back the test accuracy that large batches lose",
        statement=(
            "Trained by large batches, a network is said to be less accurate on test images than by small ones. Part "
            "of it is said to be batch norm: the statistics of a small batch are noisy, and the noise regularises. "
            "Ghost batches keep it: the large batch is cut into small parts, each normalised by itself."
        ),
        formula=(
            r"\text{accuracy}(B = 1024,\ n = 32) > \text{accuracy}(B = 1024,\ n = 1024) \quad "
            r"\text{at equal epochs and at equal updates}"
        ),
        symbols="Here B is the number of images an update, and n that of the images that share a mean and a variance.",
        source="Hoffer, Hubara & Soudry 2017, Train longer, generalize better (arXiv 1705.08741)",
        paper=None,
        setup=(
            "SGD with momentum 0.9, the learning rate falling in a straight line to 0, the last weights. The small "
            "batch: 32 images, 384 updates. The large batch: 1,024 images, whole and in ghost batches of 32, each for "
            "12 updates (equal epochs: as many images in all as the small batch sees) and for 384 (equal updates, 32 "
            "times the images). Each of the five takes, in each seed, the rate with the best validation accuracy: "
            "the small batch of 0.03, 0.1 and 0.3; the large ones of 0.3, 1 and 3 at equal epochs, and of 0.1, 0.3, 1 "
            "and 3 at equal updates (grids of a pilot on seed 100; its 640 updates became 384 for the time they "
            "take). The paper has the rate grow with the square root of the batch, here 5.7-fold; a search has no need "
            "of the rule. Running statistics look back over as many images with ghost batches as without; after 12 "
            "updates, at momentum 0.1, they still hold 0.9¹² = 28% of their start. With so few updates a network may "
            "also have learnt its training images less, so that test accuracy tells more than how well it generalises: "
            "accuracy on training images is printed beside it. (An earlier text called the difference lost "
            "generalisation; runs and rule are as they were.) The large ones of a seed have the same batches in the "
            "same order, and all have the same split and initial weights. What is left of an epoch after its last "
            "whole batch is not used: on the default data, 952 of 3,000 images with large batches."
        ),
        metric="test accuracy, ghost batches minus the whole batch, each at its best rate",
        direction="higher with ghost batches, at equal epochs and at equal updates",
        pass_rule=(
            "Two differences of test accuracy, paired by seed: ghost batches minus the whole batch, at equal epochs "
            "and at equal updates. Reproduced: both 95% intervals lie above 0. Not reproduced: one lies at or below 0. "
            "Otherwise, or if with neither the large batch has learnt in a seed, at either length, inconclusive. How "
            "much there is to win back, the small batch minus the whole large one, is measured beside it. " + LEARNT
        ),
        control="The arms of ghost batches are normalised as a whole.",
        budget=140,
        tier="full",
        smallest=1024,
    )

    def check(self, parts: Split) -> None:
        """As for every claim; and ghost batches must be of as many images as said."""
        super().check(parts)
        check_rows(self.subject.build(parts, 0), parts.train[0])

    def without_effect(self) -> Ghost:
        """Nothing is cut into ghost batches."""
        return replace(self, ghosts=False)

    def _grids(self) -> dict[str, tuple[float, ...]]:
        """Arms without their rates, and the rates of each."""
        rates = {"epochs": self.epoch_rates, "updates": self.update_rates}
        large = {f"{kind} {length}": rates[length] for length in _LENGTHS for kind in ("batch", "ghost")}
        return {"small": self.small_rates} | large

    def plan(self, seeds: Sequence[int], data: Source | None) -> list[Run]:
        """One run an arm, learning rate and seed."""
        return [
            Run(self.about.id, f"{name} {rate:g}", seed, data)
            for seed in seeds
            for name, rates in self._grids().items()
            for rate in rates
        ]

    def execute(self, run: Run, report: Report) -> dict[str, Value]:
        """Trains one network."""
        name, rate = run.arm.rsplit(" ", 1)
        batch = self.small if name == "small" else self.large
        size = self.small if name.startswith("ghost") and self.ghosts else batch
        steps = max(1, self.updates * self.small // self.large) if name.endswith("epochs") else self.updates
        parts = split(run.source, run.seed)
        model = normalised_by(self.subject.build(parts, run.seed), size, batch)
        recipe = Recipe(float(rate), steps=steps, batch_size=batch, every=steps, decay=True)
        return to_the_end(model, parts, recipe, seed=run.seed, report=report)

    def conclude(self, results: Sequence[Result]) -> Conclusion:
        """Compares ghost batches with the whole batch, at equal epochs and at equal updates."""
        tuned = searched.tuned(results, self._grids())
        cases = [
            _case(tuned, f"ghost {length}", f"batch {length}", f"ghost batches minus whole, equal {length}")
            for length in _LENGTHS
        ]
        by_length = dict(zip(_LENGTHS, cases, strict=True))
        cases.sort(key=lambda case: rank(case.verdict))
        gaps = {
            length: _case(tuned, "small", f"batch {length}", f"small batch minus whole large one, equal {length}")
            for length in _LENGTHS
        }
        left = {
            length: _case(tuned, "small", f"ghost {length}", f"small batch minus ghost batches, equal {length}")
            for length in _LENGTHS
        }
        lacking = [
            result
            for length in _LENGTHS
            for seed, result in tuned[f"batch {length}"].items()
            if not learnt(result, self.share) and not learnt(tuned[f"ghost {length}"][seed], self.share)
        ]
        verdict = Verdict.INCONCLUSIVE if lacking else joined([case.verdict for case in cases])
        shown = [*cases, *gaps.values(), *left.values()]
        effects = [Effect(f"Test accuracy, {case.name}", case.interval, "points") for case in shown]
        reason = f"Test accuracy: {'; '.join(f'{case.name} {case.interval.signed()} points' for case in cases)}."
        if lacking:
            reason += f" But without and with ghost batches it stayed low: {shortfall(lacking[0], self.share)}."
        charts: list[Figure] = [
            _differences(by_length, gaps, verdict),
            _overfitting(tuned),
            *_losses(tuned),
        ]
        return Conclusion(verdict, reason, effects, charts, self._findings(tuned, gaps))

    def _findings(self, tuned: Mapping[str, Mapping[int, Result]], gaps: Mapping[str, Case]) -> list[str]:
        accuracies = "; ".join(
            f"{_WORDS[name]} {_mean(runs, _test):.1f}% and {_mean(runs, _train):.1f}%" for name, runs in tuned.items()
        )
        found = [f"Accuracy on test and on training images, mean over seeds: {accuracies}."]
        for length, gap in gaps.items():
            lost = {
                Verdict.REPRODUCED: "the large batch loses test accuracy, which ghost batches could win back",
                Verdict.NOT_REPRODUCED: "the large batch loses no test accuracy that ghost batches could win back",
                Verdict.INCONCLUSIVE: "whether the large batch loses test accuracy is not settled",
            }[gap.verdict]
            whole = tuned[f"batch {length}"]
            fitted = interval([_train(tuned["small"][seed]) - _train(result) for seed, result in whole.items()])
            found.append(
                f"At equal {length} {lost}: {gap.name.split(',')[0]} is {gap.interval.signed()} points. On training "
                f"images the small batch has {_mean(tuned['small'], _train):.1f}%, the whole large one "
                f"{_mean(whole, _train):.1f}%"
                + (": it has learnt these less, which is no matter of generalisation." if fitted.low > 0 else ".")
            )
        small, large = _middle(tuned["small"]), _middle(tuned["ghost updates"])
        found.append(
            f"{searched.chosen(tuned, self._grids(), _WORDS)} With ghost batches at equal updates they are "
            f"{large / small:.1f} times those of the small batch (geometric mean over seeds), where the paper's rule "
            f"says {math.sqrt(self.large / self.small):.1f}."
        )
        return found


def _test(result: Result) -> float:
    return 100 * result.number("test")


def _train(result: Result) -> float:
    return 100 * result.number("train")


def _overfit(result: Result) -> float:
    return _train(result) - _test(result)


def _mean(runs: Mapping[int, Result], value: _Value) -> float:
    return fmean(value(result) for result in runs.values())


def _middle(runs: Mapping[int, Result]) -> float:
    """Geometric mean of the rates of runs."""
    return math.exp(fmean(math.log(searched.parted(result.run)[1]) for result in runs.values()))


def _case(tuned: Mapping[str, Mapping[int, Result]], first: str, second: str, name: str) -> Case:
    apart = [_test(tuned[first][seed]) - _test(result) for seed, result in tuned[second].items()]
    return Case(name, apart, 0.0, above=True, factor=False)


def _differences(cases: Mapping[str, Case], gaps: Mapping[str, Case], verdict: Verdict) -> Intervals:
    rows = [
        Row(case.name, *case.interval.numbers, color)
        for length, case in cases.items()
        for case, color in ((gaps[length], 0), (case, 1))
    ]
    return Intervals(
        "Ghost batches win test accuracy for the large batch, at equal epochs and at equal updates"
        if verdict is Verdict.REPRODUCED
        else "Test accuracy: the small batch against the large one, and ghost batches against the whole",
        "percentage points",
        rows,
        0.0,
        "no difference",
        note="Grey: what there is to win back. Each arm at its best rate; 95% intervals over seeds, paired.",
    )


def _overfitting(tuned: Mapping[str, Mapping[int, Result]]) -> Intervals:
    spans = {name: interval([_overfit(result) for result in runs.values()]) for name, runs in tuned.items()}
    colors = {"small": 0, "batch": 2, "ghost": 1}
    rows = [Row(_WORDS[name], *span.numbers, colors[name.split()[0]]) for name, span in spans.items()]
    return Intervals(
        "How much better each network is on its training images than on test images",
        "training minus test accuracy (percentage points)",
        rows,
        0.0,
        "as good on both",
        note="Each arm at its best rate; 95% intervals over seeds.",
    )


def _losses(tuned: Mapping[str, Mapping[int, Result]]) -> list[Figure]:
    """Training loss along the run of the arms of equal updates; nothing where one of them diverged."""
    names = {"small": 0, "batch updates": 2, "ghost updates": 1}
    if not all(result.numbers("losses") for name in names for result in tuned[name].values()):
        return []
    lines = []
    for name, color in names.items():
        tenths = list(zip(*(result.numbers("losses") for result in tuned[name].values()), strict=True))
        at = [(place + 0.5) * 100 / len(tenths) for place in range(len(tenths))]
        # A loss may round to 0, which a logarithmic axis has no place for.
        label = {"small": "small batch", "batch updates": "large, whole", "ghost updates": "large, ghost batches"}[name]
        lines.append(Series(label, at, [max(fmean(values), 1e-7) for values in tenths], color))
    return [
        Curves(
            "Training loss at equal updates: how closely each fits its training images",
            "share of the updates (%)",
            "training loss",
            lines,
            log_y=True,
            note="In training mode, mean over each tenth of the run and over seeds; each arm at its best rate.",
        )
    ]


CLAIM = Ghost()
