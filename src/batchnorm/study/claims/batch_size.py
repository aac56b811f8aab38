"""Small normalisation batches: does batch norm get worse with them, and worse than group norm?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import ClassVar, TypeAlias

from torch import Tensor

from ...population import freeze
from ...report.chart import Curves, Figure, Intervals, Panels, Row, Series
from ..apparatus import searched
from ..apparatus.averaged import Averaged
from ..apparatus.last_weights import to_the_end
from ..apparatus.searched import parted
from ..apparatus.small_parts import check_rows, normalised_by, renormalised_by, tried
from ..arms import derive
from ..claim import About, Conclusion, Effect, Report, Result, Run, SubjectClaim, Topic, Value, Verdict, by_arm
from ..data import Source, Split, split
from ..learning import LEARNT, SHARE, learnt, shortfall
from ..statements import Case, joined, rank
from ..statistics import Interval, interval
from ..subjects import Dense, Stack, Subject
from ..training import Recipe

__all__ = ["CLAIM", "BatchSize"]

_FLAT = "flat "

_Value: TypeAlias = Callable[[Result], float]
_Namer: TypeAlias = Callable[[str], str]


@dataclass(frozen=True, kw_only=True)
class BatchSize(SubjectClaim):
    """Trains one network with its norms over parts of many sizes of the same batches.

    Args:
        subject: The network that decides.
        companion: One that is only shown beside it; None for none.
        sizes: Normalisation batches, ascending; the last one is the whole batch of an update.
        rates: Learning rates at the first step that batch norm is searched over at each size.
        group_rates: The same of group norm.
        other_rates: The same of batch renorm and of statistics frozen at the end.
        companion_rates: The same of every arm of the companion.
        plain_rates: The same of the network without norms; none for no such arm, as on the study's own network.
        steps: Updates of each run.
        small: False normalises by the whole batch at every size: the effect removed.
        share: Of the way from guessing to 100%, what batch norm over the whole batch and group norm must come.
    """

    subject: Subject = Averaged(Stack(((16, 2), (32, 2), (64, 1), (64, 2))))
    companion: Subject | None = Averaged(Dense((100, 100)))
    sizes: tuple[int, ...] = (2, 4, 16, 128)
    rates: tuple[float, ...] = (0.3, 1.0, 3.0)
    group_rates: tuple[float, ...] = (0.03, 0.1, 0.3)
    other_rates: tuple[float, ...] = (0.3, 1.0)
    companion_rates: tuple[float, ...] = (0.03, 0.1, 0.3)
    plain_rates: tuple[float, ...] = ()
    steps: int = 200
    small: bool = True
    share: float = SHARE

    arms_of_subject: ClassVar[tuple[str, ...]] = ("none", "group", "batch", "ghost", "renorm", "frozen")
    about: ClassVar[About] = About(
        id="batch-size",
        topic=Topic.HURTS,
        title="Batch norm gets worse with small batches, and worse than group norm",
        statement=(
            "Batch norm takes its statistics from a batch; from few images they are noisy, and the network is said to "
            "get worse for it. Group norm takes them from each image by itself, so the batch is nothing to it. Here "
            "the batch of an update is always the same, and only the parts of it that are normalised together shrink, "
            "as on many devices with few images each."
        ),
        formula=r"\text{error}(\text{BN},\ n = 2) > \text{error}(\text{BN},\ n = 128), \quad "
        r"\text{error}(\text{BN},\ n = 2) > \text{error}(\text{GN})",
        symbols="Here n is the normalisation batch: the images that share a mean and a variance.",
        source="Wu & He 2018, Group Normalization (arXiv 1803.08494), Section 4.1",
        paper=(
            "ResNet-50 on ImageNet, as a secondary text reports it: with 32, 16, 8, 4 and 2 images a device, batch "
            "norm errs on 23.6, 23.7, 24.8, 27.3 and 34.7%, group norm on 24.1, 24.2, 24.0, 24.2 and 24.1%. Not "
            "comparable: there the network is 50 layers deep, trained on over a million images, and the batch of an "
            "update and the learning rate shrink along; here both are kept apart from it."
        ),
        setup=(
            "SGD with momentum 0.9, batches of 128, 200 steps, the learning rate falling in a straight line to 0. "
            "Arms: batch norm over parts of 2, 4, 16 and 128 images of the batch (128, the whole, is what synchronised "
            "batch norm computes); group norm (at least 4 channels a group); batch renorm at 2; batch norm at 2 with "
            "its statistics frozen for the last fifth of the steps. Running statistics look back over as many images "
            "at every size, so that small parts are not also judged by noisier ones. In each seed, each arm takes the "
            "rate with the best validation accuracy: batch norm at each size of 0.3, 1 and 3, group norm of 0.03, 0.1 "
            "and 0.3, the other two of 0.3 and 1; these grids are from a pilot (seed 100). Last weights; all arms of a "
            "seed have the same split, initial weights and batch order. The pilot showed that all hangs on how many "
            "values a channel has. With maps of 2×2 pixels at the end it saw no loss at n = 2, four layers deep or "
            "eight; with a fifth layer of one pixel, accuracy at n = 2 and rate 0.1 fell to half. On 28×28 images "
            "the network that decides ends in 2×2, 8 values a channel at n = 2; the paper's has 7×7, 98 values, so "
            "this is the harsher test still. Two fully connected layers of 100 units, where a channel has one value an "
            "image, are trained beside it, every arm over 0.03, 0.1 and 0.3: they are no part of the verdict. A "
            "network of your own is run without them, and beside its other arms as one without norms, over the rates "
            "of group norm."
        ),
        metric="test error of the last weights, each arm at its best rate",
        direction="higher for batch norm at n = 2 than at n = 128, and than for group norm",
        pass_rule=(
            "Two differences of test error, paired by seed: batch norm at n = 2 minus n = 128, and batch norm at n = 2 "
            "minus group norm. Reproduced: both 95% intervals lie above 0. Not reproduced: one lies at or below 0. "
            "Otherwise, or if batch norm at n = 128 or group norm has not learnt in a seed, inconclusive. " + LEARNT
        ),
        control="Every normalisation batch is the whole batch of 128.",
        budget=275,
        tier="standard",
        smallest=128,
    )

    def without_effect(self) -> BatchSize:
        """Every normalisation batch is the whole."""
        return replace(self, small=False)

    def on(self, subject: Subject) -> BatchSize:
        """The same claim about another network, which has no companion, but an arm without norms."""
        return replace(self, subject=subject, companion=None, plain_rates=self.group_rates)

    def check(self, parts: Split) -> None:
        """As for every claim; and the network must bear norms over parts of the batch."""
        super().check(parts)
        images = parts.train[0]
        check_rows(self.subject.build(parts, 0), images)
        tried(renormalised_by(self.subject.build(parts, 0), self._least, self.steps), images)

    @property
    def _least(self) -> int:
        return self.sizes[0]

    @property
    def _whole(self) -> int:
        return self.sizes[-1]

    def _grids(self) -> dict[str, tuple[float, ...]]:
        """Arms without their rates, and the rates of each."""
        batch = {f"batch {size}": self.rates for size in self.sizes}
        others = {f"{kind} {self._least}": self.other_rates for kind in ("renorm", "frozen")}
        grids = batch | {"group": self.group_rates} | others
        if self.plain_rates:
            grids["none"] = self.plain_rates
        if self.companion is not None:
            grids |= {_FLAT + name: self.companion_rates for name in (*batch, "group")}
        return grids

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
        name, rate = run.arm.removeprefix(_FLAT).rsplit(" ", 1)
        parts = split(run.source, run.seed)
        subject = self.companion if run.arm.startswith(_FLAT) else self.subject
        assert subject is not None
        model = subject.build(parts, run.seed)
        kind, _, number = name.partition(" ")
        size = int(number) if number and self.small else self._whole
        if kind in ("group", "none"):
            model = derive(model, kind)
        elif kind == "renorm":
            model = renormalised_by(model, size, self.steps)
        else:
            model = normalised_by(model, size, self._whole)

        def before(step: int, images: Tensor, labels: Tensor) -> None:
            if kind == "frozen" and step == self.steps - self.steps // 5 + 1:
                freeze(model)

        recipe = Recipe(float(rate), steps=self.steps, batch_size=self._whole, every=self.steps, decay=True)
        anew = kind in ("batch", "renorm")
        return to_the_end(model, parts, recipe, seed=run.seed, report=report, anew=anew, before=before)

    def conclude(self, results: Sequence[Result]) -> Conclusion:
        """Compares batch norm at the smallest size with the whole batch and with group norm."""
        arms = by_arm(results)
        tuned = searched.tuned(results, self._grids())
        least, whole = f"batch {self._least}", f"batch {self._whole}"
        cases = [_case(tuned, least, other, self._name) for other in (whole, "group")]
        cases.sort(key=lambda case: rank(case.verdict))
        lacking = [
            result
            for name in (whole, "group")
            for result in tuned[name].values()
            if result.values["diverged"] or not learnt(result, self.share)
        ]
        verdict = Verdict.INCONCLUSIVE if lacking else joined([case.verdict for case in cases])
        more = [_case(tuned, f"{kind} {self._least}", least, self._name) for kind in ("renorm", "frozen")]
        if self.companion is not None:
            more += [_case(tuned, _FLAT + least, _FLAT + other, self._name) for other in (whole, "group")]
        same = _same_rate(arms, tuned, least, whole)
        effects = [Effect(f"Test error, {case.name}", case.interval, "points") for case in (*cases, *more)]
        name = f"Test error, {self._name(least)} minus {self._name(whole)}, both at the latter's best rate"
        effects.append(Effect(name, same, "points"))
        reason = f"Test error: {'; '.join(f'{case.name} {case.interval.signed()} points' for case in cases)}."
        if lacking:
            reason += f" But a network ({self._name(_arm(lacking[0]))}) stayed at {shortfall(lacking[0], self.share)}."
        charts = [self._error_chart(tuned, verdict), self._loss_chart(tuned), self._differences([*cases, *more])]
        return Conclusion(verdict, reason, effects, charts, self._findings(tuned, same))

    def _name(self, arm: str) -> str:
        """An arm as a reader knows it."""
        kind, _, number = arm.removeprefix(_FLAT).partition(" ")
        size = f" at n = {number}" if number else ""
        words = {"group": "group norm", "renorm": "batch renorm", "none": "no norm"}
        word = words.get(kind, "batch norm") + size + (" frozen for the last fifth" if kind == "frozen" else "")
        return f"{word}, fully connected" if arm.startswith(_FLAT) else word

    def _findings(self, tuned: Mapping[str, Mapping[int, Result]], same: Interval) -> list[str]:
        errors = "; ".join(f"{self._name(name)} {_mean(runs, _error):.1f}%" for name, runs in tuned.items())
        found = [f"Test error, mean over seeds: {errors}."]
        least, whole = f"batch {self._least}", f"batch {self._whole}"
        found.append(
            f"At the rate that is best for n = {self._whole}, batch norm at n = {self._least} instead of "
            f"n = {self._whole} changes the test error by {same.signed()} points; the verdict lets each search its own."
        )
        if all(runs[seed].numbers("losses") for runs in (tuned[least], tuned[whole]) for seed in runs):
            losses = [_mean(tuned[name], _last_loss) for name in (least, whole)]
            found.append(
                f"Training loss in the last tenth of the steps, which has the noise of the batch's statistics in it: "
                f"{losses[0]:.3f} at n = {self._least}, {losses[1]:.3f} at n = {self._whole}."
            )
        anew = "; ".join(
            f"n = {size} {100 * fmean(_gain(result) for result in tuned[f'batch {size}'].values()):+.2f}".replace(
                "-", "−"
            )
            for size in self.sizes
        )
        found.append(f"Statistics of all training images, taken anew, change batch norm's test accuracy by: {anew}.")
        found.append(
            "Group norm computes each image by itself: its error is one number, whatever the normalisation batch."
        )
        grids = self._grids()
        found.append(searched.chosen(tuned, grids, {name: self._name(name) for name in grids}))
        return found

    def _error_chart(self, tuned: Mapping[str, Mapping[int, Result]], verdict: Verdict) -> Figure:
        held = verdict is Verdict.REPRODUCED
        title = (
            f"Batch norm errs more at n = {self._least} than at n = {self._whole}, and more than group norm"
            if held
            else "Test error by the batch that is normalised together"
        )
        note = (
            "Every update is by the same batch; its right end is synchronised batch norm. Bands are 95% intervals "
            "over seeds."
        )
        return self._panels(title, note, "test error (%)", tuned, _error)

    def _loss_chart(self, tuned: Mapping[str, Mapping[int, Result]]) -> Figure:
        finite = {
            name: {seed: result for seed, result in runs.items() if result.numbers("losses")}
            for name, runs in tuned.items()
        }
        return self._panels(
            "Training loss at the end, by the batch that is normalised together",
            "Mean over the last tenth of the steps, in training mode. Bands are 95% intervals over seeds.",
            "training loss",
            {name: runs for name, runs in finite.items() if runs},
            _last_loss,
        )

    def _panels(
        self, title: str, note: str, label: str, tuned: Mapping[str, Mapping[int, Result]], value: _Value
    ) -> Figure:
        main = self._curves("The network that decides", label, tuned, "", value)
        if self.companion is None:
            return replace(main, title=title, note=note)
        flat = self._curves("Fully connected: one value an image", label, tuned, _FLAT, value)
        return Panels(title, [main, flat], note=note)

    def _curves(
        self, title: str, label: str, tuned: Mapping[str, Mapping[int, Result]], prefix: str, value: _Value
    ) -> Curves:
        sizes = [size for size in self.sizes if f"{prefix}batch {size}" in tuned]
        spans = [_over_seeds(tuned[f"{prefix}batch {size}"], value) for size in sizes]
        lines = [_line("batch norm", sizes, spans, 1)] if sizes else []
        if f"{prefix}group" in tuned:
            group = _over_seeds(tuned[f"{prefix}group"], value)
            lines.append(_line("group norm", [self._least, self._whole], [group, group], 2))
        if "none" in tuned and not prefix:
            plain = _over_seeds(tuned["none"], value)
            lines.append(_line("no norm", [self._least, self._whole], [plain, plain], 0))
        for kind, color in (("renorm", 3), ("frozen", 4)):
            if (name := f"{kind} {self._least}") in tuned and not prefix:
                word = "renorm" if kind == "renorm" else "frozen at the end"
                lines.append(_line(word, [self._least], [_over_seeds(tuned[name], value)], color))
        ticks = [float(size) for size in self.sizes]
        return Curves(title, "normalisation batch n (images)", label, lines, log_x=True, x_ticks=ticks)

    def _differences(self, cases: Sequence[Case]) -> Intervals:
        rows = [Row(case.name, *case.interval.numbers, 1 if place < 2 else 0) for place, case in enumerate(cases)]
        return Intervals(
            "Differences of test error, each arm at its best rate",
            "percentage points",
            rows,
            0.0,
            "no difference",
            note="Right of the line the first of the two errs more. 95% intervals over seeds, paired.",
        )


def _error(result: Result) -> float:
    return 100 * (1 - result.number("test"))


def _last_loss(result: Result) -> float:
    return result.numbers("losses")[-1]


def _gain(result: Result) -> float:
    return result.number("test anew") - result.number("test")


def _arm(result: Result) -> str:
    return result.run.arm.rsplit(" ", 1)[0]


def _mean(runs: Mapping[int, Result], value: _Value) -> float:
    return fmean(value(result) for result in runs.values())


def _over_seeds(runs: Mapping[int, Result], value: _Value) -> Interval:
    return interval([value(result) for result in runs.values()])


def _case(tuned: Mapping[str, Mapping[int, Result]], first: str, second: str, name: _Namer) -> Case:
    apart = [_error(tuned[first][seed]) - _error(result) for seed, result in tuned[second].items()]
    return Case(f"{name(first)} minus {name(second)}", apart, 0.0, above=True, factor=False)


def _same_rate(
    arms: Mapping[str, Mapping[int, Result]], tuned: Mapping[str, Mapping[int, Result]], least: str, whole: str
) -> Interval:
    pairs = ((arms[f"{least} {parted(best.run)[1]:g}"][seed], best) for seed, best in tuned[whole].items())
    return interval([_error(small) - _error(best) for small, best in pairs])


def _line(label: str, sizes: Sequence[int], spans: Sequence[Interval], color: int) -> Series:
    middle = [span.estimate for span in spans]
    several = spans[0].count > 1
    low, high = ([max(0.0, span.low) for span in spans], [span.high for span in spans]) if several else (None, None)
    return Series(label, [float(size) for size in sizes], middle, color, low, high, markers=True)


CLAIM = BatchSize()
