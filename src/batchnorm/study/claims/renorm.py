"""Batch renorm: does it mend batch norm where batches are tiny, or not drawn at random?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor

from ...report.chart import Curves, Figure, Intervals, Panels, Row, Series
from ..apparatus import searched
from ..apparatus.averaged import Averaged
from ..apparatus.last_weights import to_the_end
from ..apparatus.small_parts import check_rows, normalised_by, renormalised_by, tried
from ..arms import derive
from ..claim import About, Conclusion, Effect, Report, Result, Run, SubjectClaim, Topic, Value, Verdict
from ..data import Source, Split, split
from ..learning import LEARNT, SHARE, learnt, shortfall
from ..statements import Case, joined, rank
from ..subjects import Dense, Subject
from ..training import Recipe, shuffled

__all__ = ["CLAIM", "Renorm", "by_class_pairs"]

_Value: TypeAlias = Callable[[Result], float]

_SETTINGS = ("tiny", "pairs")
_WORDS = {
    "whole": "batch norm, 32 at random",
    "batch tiny": "batch norm, parts of 4",
    "renorm tiny": "batch renorm, parts of 4",
    "batch pairs": "batch norm, two classes",
    "renorm pairs": "batch renorm, two classes",
    "group pairs": "group norm, two classes",
}


def by_class_pairs(labels: Tensor, generator: torch.Generator, each: int) -> Tensor:
    """An order of all images in which ``each`` of one class and as many of another follow each other, and so on.

    Where a class does not fill its last block, some of its images come twice. At the end, when only one class is left,
    its blocks follow each other.

    Args:
        labels: Of the images.
        generator: Decides which images share a block, and which blocks follow each other.
        each: Images of one class in a row.
    """
    shuffle = torch.randperm(len(labels), generator=generator)
    blocks: list[tuple[int, Tensor]] = []
    for label in labels.unique().tolist():
        own = shuffle[labels[shuffle] == label]
        count = -(-len(own) // each)
        filled = own.repeat(-(-count * each // len(own)))[: count * each]
        blocks += [(label, block) for block in filled.split(each)]
    waiting = [blocks[place] for place in torch.randperm(len(blocks), generator=generator).tolist()]
    order: list[Tensor] = []
    while waiting:
        label, first = waiting.pop(0)
        order.append(first)
        if waiting:
            other = next((place for place, (name, _) in enumerate(waiting) if name != label), 0)
            order.append(waiting.pop(other)[1])
    return torch.cat(order)


@dataclass(frozen=True, kw_only=True)
class Renorm(SubjectClaim):
    """Trains one network with batch norm and with batch renorm, on tiny parts and on batches of two classes.

    Args:
        subject: The network.
        batch: Images an update, half of each of two classes where they are not drawn at random.
        tiny: Images that are normalised together where they are few.
        steps: Updates of each run.
        rates: Learning rates at the first step that every arm is searched over.
        corrected: False gives the arms of batch renorm plain batch norm: the effect removed.
        share: Of the way from guessing to 100%, what batch norm on whole random batches must come.
    """

    subject: Subject = Averaged(Dense((100, 100)))
    batch: int = 32
    tiny: int = 4
    steps: int = 400
    rates: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3)
    corrected: bool = True
    share: float = SHARE

    arms_of_subject: ClassVar[tuple[str, ...]] = ("group", "batch", "ghost", "renorm")
    about: ClassVar[About] = About(
        id="renorm",
        topic=Topic.HURTS,
        title="Batch renorm mends batch norm where batches are tiny or not random",
        statement=(
            "Batch norm trains by the statistics of its batch and is used with those of all images. Where a batch is "
            "tiny, or holds few classes, the two differ. Batch renorm corrects the batch's towards the running ones, "
            "within limits, so that the network is trained more as it is used."
        ),
        formula=(
            r"\hat{x} = \frac{x - \mu_B}{\sigma_B} \cdot r + d, \qquad "
            r"r = \operatorname{clip}\!\left(\frac{\sigma_B}{\sigma}, \frac{1}{r_{\max}}, r_{\max}\right), \quad "
            r"d = \operatorname{clip}\!\left(\frac{\mu_B - \mu}{\sigma}, -d_{\max}, d_{\max}\right)"
        ),
        symbols=(
            "Here B marks the mean and standard deviation of a batch, μ and σ without it are the running ones, and r "
            "and d are constants to the gradient."
        ),
        source="Ioffe 2017, Batch Renormalization (arXiv 1702.03275)",
        paper=None,
        setup=(
            "SGD with momentum 0.9, batches of 32, 400 steps, the learning rate falling in a straight line to 0, the "
            "last weights. Tiny: images drawn at random, normalised in parts of 4 of the batch of 32. Two classes: a "
            "batch is 16 images of one class and 16 of another, normalised as a whole. Each with batch norm and with "
            "batch renorm, whose r may come to 3 and d to 5: as plain batch norm for a twentieth of the steps, then "
            "growing until two fifths (r) and a quarter (d) of them. As the upper bound, batch norm over 32 images at "
            "random; for comparison, group norm on two classes. In each seed, each of the six takes the rate with the "
            "best validation accuracy, of 0.01, 0.03, 0.1 and 0.3. (A first study on these seeds began at 0.03, which "
            "every arm on two classes chose in every seed, so 0.01 was added.) Running statistics look back over as "
            "many images in every arm; all arms of a seed have the same split and initial weights, and within a "
            "setting the same batches. A pilot (seed 100) was to find what there is to mend: in four convolutions that "
            "end in 2×2 pixels parts of 4 cost batch norm nothing, and batch renorm won nothing, as a channel still "
            "has 16 values; in fully connected layers, with one value an image, they cost batch norm 3 points. So the "
            "study's own network here is fully connected; batch renorm was not tried on it before."
        ),
        metric="test accuracy, batch renorm minus batch norm, each at its best rate",
        direction="higher with batch renorm, in tiny parts and on batches of two classes",
        pass_rule=(
            "Two differences of test accuracy, paired by seed: batch renorm minus batch norm, in parts of 4 and on "
            "batches of two classes. Reproduced: both 95% intervals lie above 0. Not reproduced: one lies at or below "
            "0. Otherwise, or if in a seed batch norm over 32 images at random has not learnt, or neither of the two "
            "that are compared, inconclusive. What is lost to the upper bound, with either, is measured beside it. "
            + LEARNT
        ),
        control="The arms of batch renorm are plain batch norm.",
        budget=100,
        tier="full",
        smallest=32,
    )

    def check(self, parts: Split) -> None:
        """As for every claim; and the network must bear norms over parts of the batch."""
        super().check(parts)
        images = parts.train[0]
        check_rows(self.subject.build(parts, 0), images)
        tried(renormalised_by(self.subject.build(parts, 0), 2, self.steps), images)

    def without_effect(self) -> Renorm:
        """Nothing is corrected."""
        return replace(self, corrected=False)

    def plan(self, seeds: Sequence[int], data: Source | None) -> list[Run]:
        """One run an arm, learning rate and seed."""
        return [
            Run(self.about.id, f"{name} {rate:g}", seed, data)
            for seed in seeds
            for name in _WORDS
            for rate in self.rates
        ]

    def execute(self, run: Run, report: Report) -> dict[str, Value]:
        """Trains one network."""
        name, rate = run.arm.rsplit(" ", 1)
        kind, _, setting = name.partition(" ")
        parts = split(run.source, run.seed)
        size = self.tiny if setting == "tiny" else self.batch
        model = self.subject.build(parts, run.seed)
        if kind == "group":
            model = derive(model, "group")
        elif kind == "renorm" and self.corrected:
            model = renormalised_by(model, size, self.steps)
        else:
            model = normalised_by(model, size, self.batch)
        recipe = Recipe(float(rate), steps=self.steps, batch_size=self.batch, every=self.steps, decay=True)
        order = partial(by_class_pairs, each=self.batch // 2) if setting == "pairs" else shuffled
        anew = kind != "group"
        return to_the_end(model, parts, recipe, seed=run.seed, report=report, anew=anew, order=order)

    def conclude(self, results: Sequence[Result]) -> Conclusion:
        """Compares batch renorm with batch norm in both settings."""
        tuned = searched.tuned(results, dict.fromkeys(_WORDS, self.rates))
        cases = [_case(tuned, f"renorm {setting}", f"batch {setting}") for setting in _SETTINGS]
        cases.sort(key=lambda case: rank(case.verdict))
        losses = {name: _case(tuned, name, "whole") for name in _WORDS if name != "whole"}
        lacking = [
            (first, result)
            for first, second in (("whole", "whole"), *((f"batch {name}", f"renorm {name}") for name in _SETTINGS))
            for seed, result in tuned[first].items()
            if not learnt(result, self.share) and not learnt(tuned[second][seed], self.share)
        ]
        verdict = Verdict.INCONCLUSIVE if lacking else joined([case.verdict for case in cases])
        effects = [
            Effect(f"Test accuracy, {case.name}", case.interval, "points") for case in (*cases, *losses.values())
        ]
        reason = f"Test accuracy: {'; '.join(f'{case.name} {case.interval.signed()} points' for case in cases)}."
        if lacking:
            first, result = lacking[0]
            reason += f" But a network ({_WORDS[first]}) stayed at {shortfall(result, self.share)}."
        charts: list[Figure] = [_shortfalls(losses, verdict), _gains(cases), *_losses(tuned)]
        return Conclusion(verdict, reason, effects, charts, self._findings(tuned, losses))

    def _findings(self, tuned: Mapping[str, Mapping[int, Result]], losses: Mapping[str, Case]) -> list[str]:
        accuracies = "; ".join(f"{_WORDS[name]} {_mean(runs, _test):.1f}%" for name, runs in tuned.items())
        found = [f"Test accuracy, mean over seeds: {accuracies}."]
        for setting, place in (("tiny", "In parts of 4"), ("pairs", "On batches of two classes")):
            lost = losses[f"batch {setting}"]
            said = {
                Verdict.NOT_REPRODUCED: "batch norm loses nothing to the upper bound, so there is nothing to mend",
                Verdict.INCONCLUSIVE: "whether batch norm loses anything to the upper bound is not settled",
                Verdict.REPRODUCED: "batch norm loses to the upper bound",
            }[replace(lost, above=False).verdict]
            mended = losses[f"renorm {setting}"]
            found.append(
                f"{place} {said}: {lost.interval.signed()} points with batch norm, {mended.interval.signed()} with "
                "batch renorm."
            )
        anew = "; ".join(
            f"{_WORDS[name]} {100 * fmean(_gain(result) for result in runs.values()):+.2f}".replace("-", "−")
            for name, runs in tuned.items()
            if name != "group pairs"
        )
        found.append(f"Statistics of all training images, taken anew, change the test accuracy by: {anew}.")
        found.append(searched.chosen(tuned, dict.fromkeys(_WORDS, self.rates), _WORDS))
        return found


def _test(result: Result) -> float:
    return 100 * result.number("test")


def _gain(result: Result) -> float:
    return result.number("test anew") - result.number("test")


def _mean(runs: Mapping[int, Result], value: _Value) -> float:
    return fmean(value(result) for result in runs.values())


def _case(tuned: Mapping[str, Mapping[int, Result]], first: str, second: str) -> Case:
    apart = [_test(tuned[first][seed]) - _test(result) for seed, result in tuned[second].items()]
    return Case(f"{_WORDS[first]}, minus {_WORDS[second]}", apart, 0.0, above=True, factor=False)


def _shortfalls(losses: Mapping[str, Case], verdict: Verdict) -> Intervals:
    colors = {"batch": 2, "renorm": 1, "group": 0}
    rows = [Row(_WORDS[name], *case.interval.numbers, colors[name.split()[0]]) for name, case in losses.items()]
    return Intervals(
        "In tiny parts and on batches of two classes, batch renorm is better than batch norm"
        if verdict is Verdict.REPRODUCED
        else "Test accuracy, compared with batch norm on 32 random images",
        "percentage points",
        rows,
        0.0,
        "batch norm, 32 at random",
        note="Each arm at its best rate; 95% intervals over seeds, paired.",
    )


def _gains(cases: Sequence[Case]) -> Intervals:
    return Intervals(
        "What batch renorm changes in test accuracy, against batch norm on the same batches",
        "percentage points",
        [Row(case.name.split(", minus")[0].removeprefix("batch renorm, "), *case.interval.numbers) for case in cases],
        0.0,
        "no difference",
        note="These two decide. Each arm at its best rate; 95% intervals over seeds, paired.",
    )


def _losses(tuned: Mapping[str, Mapping[int, Result]]) -> list[Figure]:
    """Training loss along the run; nothing where a run that was chosen diverged."""
    if not all(result.numbers("losses") for runs in tuned.values() for result in runs.values()):
        return []
    panels = []
    for setting, title in (("tiny", "Parts of 4, at random"), ("pairs", "Batches of two classes")):
        lines = []
        for name, label, color in (
            ("whole", "batch norm, 32 at random", 0),
            (f"batch {setting}", "batch norm", 2),
            (f"renorm {setting}", "batch renorm", 1),
        ):
            tenths = list(zip(*(result.numbers("losses") for result in tuned[name].values()), strict=True))
            at = [(place + 0.5) * 100 / len(tenths) for place in range(len(tenths))]
            lines.append(Series(label, at, [max(fmean(values), 1e-7) for values in tenths], color))
        panels.append(Curves(title, "share of the steps (%)", "training loss", lines, log_y=True))
    note = (
        "Loss in training mode, on the batches of each setting. Mean over each tenth of the run and over seeds; each "
        "arm at its best rate."
    )
    return [Panels("Training loss with batch norm and with batch renorm", panels, note=note)]


CLAIM = Renorm()
