"""Standardised input trains faster; batch norm as the first layer does the same for raw input."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ... import Standardize
from ...report.chart import Curves, Figure, Series
from ..apparatus.copies import Copies, losses_of
from ..claim import About, Claim, Conclusion, Effect, Report, Result, Run, Topic, Value, Verdict, by_arm
from ..data import Source, table
from ..statements import joined, rank
from ..statistics import Interval, interval

__all__ = ["CLAIM", "InputStandardisation"]

_RAW, _STANDARDISED, _NORM_FIRST = "raw", "standardised", "norm first"


@dataclass(frozen=True)
class InputStandardisation(Claim):
    """Trains the same network on raw features, on standardised ones, and on raw ones through a first batch norm.

    Args:
        features: Which table, one of :data:`batchnorm.study.data.tables.TABLES`.
        hidden: Units of the hidden layers.
        rates: Learning rates that every arm is searched over, ascending; wide, since raw features need tiny ones.
        steps: Updates of each training.
        batch_size: Rows an update.
        tolerance: Cross-entropy on the validation split at which an arm has arrived.
        lasting: Steps in a row that it must be at most that, so that a lucky one does not count.
        raw: False gives every arm standardised input: the effect removed.
        learns: The raw arm must get below this share of the loss of guessing, or there is no baseline.
        worthwhile: The ratio of steps that the verdict asks for: fewer by so much is worth having.
    """

    features: str = "breast_cancer"
    hidden: tuple[int, ...] = (32, 32)
    rates: tuple[float, ...] = tuple(float(f"{10 ** (half / 2):.2g}") for half in range(-12, 2))
    steps: int = 800
    batch_size: int = 32
    tolerance: float = 0.2
    lasting: int = 10
    raw: bool = True
    learns: float = 0.5
    worthwhile: float = 0.9

    about: ClassVar[About] = About(
        id="input-standardisation",
        topic=Topic.DOES,
        title="Standardised input trains faster, and batch norm as the first layer does the same",
        statement=(
            "A network whose input features have mean 0 and standard deviation 1 needs fewer training steps than the "
            "same network on the features as they were measured, on scales that differ by a factor of 200,000. "
            "Batch norm as the first layer does this for raw features by itself: batch norm is, for a hidden layer, "
            "what standardisation is for the input."
        ),
        formula=(
            r"\hat{x}_j = \frac{x_j - \mu_j}{\sigma_j}, \qquad "
            r"\text{ratio} = \frac{\text{steps on } \hat{x} \text{ to the tolerance}}{\text{steps on } x}"
        ),
        symbols="Here x_j is feature j, μ_j its mean and σ_j its standard deviation over the training part.",
        source=(
            "Common practice, as in LeCun et al. 1998, Efficient BackProp, Section 4.3 (the mean and spread of the "
            "inputs), and Ioffe & Szegedy 2015 (arXiv 1502.03167), Section 2, who carry it into the network"
        ),
        paper=None,
        setup=(
            "scikit-learn's breast cancer table: 569 tumours, 30 measurements with standard deviations from 0.0026 "
            "to 569, two classes, split 60/20/20 anew per seed. A network of two hidden layers of 32 ReLU units, "
            "He's initialisation, SGD with momentum 0.9, batches of 32, 800 steps. Three arms: raw features; "
            "features standardised with the training part's means and standard deviations (batchnorm.Standardize); "
            "raw features with batch norm as the network's first layer. Each is searched over the same 14 learning "
            "rates from 1e-6 to 3.2, two a decade: in each seed, the rate that gets to the tolerance first on the "
            "validation split. Arms of a seed share split, initial weights and batch order. Tolerance and network "
            "come from a pilot on ten other seeds (100 to 109)."
        ),
        metric=(
            "first step from which the validation split's cross-entropy is at most 0.2 for 10 steps in a row "
            "(guessing gives 0.66)"
        ),
        direction="at least a tenth fewer than on raw features, for both: ratios below 0.9",
        pass_rule=(
            "Both ratios, standardised and batch norm first, each against raw, paired by seed, in logarithms. "
            "Reproduced: both arms get to the tolerance in every seed, and both 95% intervals lie below 0.9. Not "
            "reproduced: one of the two does not get there in more than half of the seeds, or its interval lies "
            "above 0.9. Otherwise inconclusive; so too if in some seed the raw arm does not even halve the loss of "
            "guessing at any rate. An arm that never gets there counts with its last step, which is too few: for "
            "the raw arm that makes the effect look smaller than it is."
        ),
        control="All three arms get standardised input, so that there is nothing to gain.",
        budget=20,
    )

    def without_effect(self) -> InputStandardisation:
        """Every arm gets standardised input."""
        return replace(self, raw=False)

    def plan(self, seeds: Sequence[int], data: Source | None) -> list[Run]:
        """One run an arm and seed: it trains at every learning rate."""
        arms = (_RAW, _STANDARDISED, _NORM_FIRST)
        return [Run(self.about.id, arm, seed, None) for seed in seeds for arm in arms]

    def execute(self, run: Run, report: Report) -> dict[str, Value]:
        """Trains one arm at every learning rate and says which got to the tolerance first."""
        split = table(self.features, run.seed)
        inputs = {"train": split.train[0], "validation": split.validation[0], "test": split.test[0]}
        spread = inputs["train"].double().std(dim=0, correction=0)
        if run.arm == _STANDARDISED or not self.raw:
            layer = Standardize(split.channels).fit(inputs["train"])
            inputs = {part: layer(features) for part, features in inputs.items()}
        sizes = (split.channels, *self.hidden, split.classes)
        model = Copies(sizes, len(self.rates), norm_first=run.arm == _NORM_FIRST, seed=run.seed)
        losses = self._train(model, inputs, split.train[1], split.validation[1], run.seed, report)  # (steps, rates)
        # (steps − lasting + 1, rates): whether the loss is low from this step on for as long as it takes
        arrived = (losses <= self.tolerance).unfold(0, self.lasting, 1).all(dim=-1)
        steps = torch.where(arrived.any(dim=0), arrived.int().argmax(dim=0) + 1, self.steps)
        # Among rates that arrive at the same step, or never, the one that ends lowest.
        first = min(range(len(self.rates)), key=lambda rate: (int(steps[rate]), float(losses[-1, rate])))
        lowest = int(losses[-1].argmin())
        model.eval()
        with torch.no_grad():
            right = model(inputs["test"])[lowest].argmax(dim=1) == split.test[1]
        shares = split.train[1].bincount() / len(split.train[1])
        return {
            "steps": steps.double().tolist(),
            "arrived": arrived.any(dim=0).double().tolist(),
            "chosen": first,
            "curve": losses[self._shown(), first].double().tolist(),
            "best": float(losses.min()),
            "guessing": float(-(shares * shares.log()).sum()),
            "test": float(right.double().mean()),
            "smallest deviation": float(spread.min()),
            "largest deviation": float(spread.max()),
        }

    def _train(
        self,
        model: Copies,
        inputs: Mapping[str, Tensor],
        labels: Tensor,
        validation: Tensor,
        seed: int,
        report: Report,
    ) -> Tensor:
        """Trains all copies and gives the validation loss after every step, (steps, rates)."""
        generator = torch.Generator().manual_seed(seed)
        per_epoch = len(labels) // self.batch_size
        order = torch.empty(0, dtype=torch.int64)
        rates, velocities = torch.tensor(self.rates), [torch.zeros_like(each) for each in model.parameters()]
        seen = []
        for step in range(self.steps):
            place = step % per_epoch
            if place == 0:
                order = torch.randperm(len(labels), generator=generator)
            chosen = order[place * self.batch_size : (place + 1) * self.batch_size]
            model.train()
            model.zero_grad()
            # The gradient of a sum is each copy's own: one that diverges leaves the others as they are.
            losses_of(model(inputs["train"][chosen]), labels[chosen]).sum().backward()
            model.step(velocities, rates)
            model.eval()
            with torch.no_grad():
                seen.append(losses_of(model(inputs["validation"]), validation))
            report((step + 1) / self.steps, f"step {step + 1}/{self.steps}")
        # What diverged is a large number: results hold no NaN.
        return torch.stack(seen).nan_to_num(nan=_DIVERGED, posinf=_DIVERGED).clamp(max=_DIVERGED)

    def _shown(self) -> list[int]:
        """The steps of the loss curve, from 0, evenly spaced in logarithms."""
        return sorted({round(self.steps ** (place / 60)) - 1 for place in range(61)})

    def conclude(self, results: Sequence[Result]) -> Conclusion:
        """Compares steps to the tolerance, each arm at its best rate."""
        arms = by_arm(results)
        raw = arms[_RAW]
        ratios = {arm: _ratio(arms[arm], raw) for arm in _TREATED}
        missed = {arm: sum(not _arrived(result) for result in runs.values()) for arm, runs in arms.items()}
        baseline = [result.number("best") / result.number("guessing") for result in raw.values()]
        judged = {arm: self._judge(ratio, missed[arm]) for arm, ratio in ratios.items()}
        verdict = joined(list(judged.values())) if max(baseline) < self.learns else Verdict.INCONCLUSIVE
        # The effect that decided comes first: the arm that refutes the claim or leaves it open.
        effects = [
            Effect(
                f"Steps to the tolerance, {_WORDS[arm]} against raw",
                ratios[arm],
                "×",
                self._note(arm, _RAW, missed, len(raw)),
                ratio=True,
            )
            for arm in sorted(_TREATED, key=lambda arm: rank(judged[arm]))
        ]
        between = _ratio(arms[_NORM_FIRST], arms[_STANDARDISED])
        note = self._note(_NORM_FIRST, _STANDARDISED, missed, len(raw))
        effects.append(
            Effect("Steps to the tolerance, batch norm first against standardised", between, "×", note, True)
        )
        for arm in _TREATED:
            gain = interval([100 * (arms[arm][seed].number("test") - raw[seed].number("test")) for seed in raw])
            effects.append(Effect(f"Test accuracy, {_WORDS[arm]} minus raw", gain, "points"))
        learned = Effect(
            f"Lowest validation loss on raw features over that of guessing (must be below {self.learns:g})",
            interval(baseline),
            "×",
            ratio=True,
        )
        effects.insert(len(effects) if max(baseline) < self.learns else 0, learned)
        return Conclusion(
            verdict,
            self._reason(arms, ratios, missed, max(baseline)),
            effects,
            self._charts(arms),
            self._findings(arms),
        )

    def _judge(self, ratio: Interval, missed: int) -> Verdict:
        """The rule for one arm; of its seeds so many never got to the tolerance."""
        if ratio.low > self.worthwhile or missed > ratio.count / 2:
            return Verdict.NOT_REPRODUCED
        return Verdict.REPRODUCED if ratio.high < self.worthwhile and not missed else Verdict.INCONCLUSIVE

    def _note(self, treatment: str, control: str, missed: Mapping[str, int], seeds: int) -> str:
        """What it means for a ratio that some trainings count the last step and not the one they would need."""
        never = [
            f"{_WORDS[arm]} never got there in {missed[arm]} of {seeds} seeds"
            for arm in (control, treatment)
            if missed[arm]
        ]
        if not never:
            return ""
        bound = "neither an upper nor a lower" if len(never) > 1 else "an upper" if missed[control] else "a lower"
        return f"{' and '.join(never)}: the ratio is {bound} bound"

    def _reason(
        self,
        arms: Mapping[str, Mapping[int, Result]],
        ratios: Mapping[str, Interval],
        missed: Mapping[str, int],
        baseline: float,
    ) -> str:
        took = {arm: _range([_steps(result) for result in runs.values()]) for arm, runs in arms.items()}
        seeds = len(arms[_RAW])
        sentences = [
            f"To a lasting validation loss of {self.tolerance:g} raw features take {took[_RAW]} steps, standardised "
            f"features {took[_STANDARDISED]} and batch norm first {took[_NORM_FIRST]}: "
            f"{_share(ratios[_STANDARDISED])} and {_share(ratios[_NORM_FIRST])} of the raw arm's."
        ]
        if any(missed.values()):
            never = " and ".join(f"{_WORDS[arm]} in {count} of {seeds} seeds" for arm, count in missed.items() if count)
            sentences.append(f"Never got there: {never}; that counts as {self.steps} steps.")
        if baseline >= self.learns:
            sentences.append(
                f"In some seed raw features do not get below {baseline:.2g} times the loss of guessing: there is no "
                "baseline."
            )
        return " ".join(sentences)

    def _findings(self, arms: Mapping[str, Mapping[int, Result]]) -> list[str]:
        everything = [result for runs in arms.values() for result in runs.values()]
        smallest = min(result.number("smallest deviation") for result in everything)
        largest = max(result.number("largest deviation") for result in everything)
        chosen = "; ".join(
            f"{_WORDS[arm]} {', '.join(f'{self._rate(result):g}' for result in runs.values())}"
            for arm, runs in arms.items()
        )
        ends = {self.rates[0], self.rates[-1]}
        at_end = sum(self._rate(result) in ends for result in everything)
        return [
            f"Standard deviations of the training part's features: from {smallest:.2g} to {largest:.3g}.",
            f"Learning rates chosen on the validation split, seed by seed: {chosen}. "
            + (f"In {at_end} runs that is an end of the grid." if at_end else "None is an end of the grid."),
            "The loss is taken in evaluation mode, as the network would be used. There batch norm standardises with "
            "its running statistics, which begin at mean 0 and variance 1 and move by a tenth a step: after 20 steps "
            f"{100 * 0.9**20:.0f}% of that beginning is left. Statistics of the whole training part, as Standardize "
            "has them, are right from the first step.",
        ]

    def _rate(self, result: Result) -> float:
        return self.rates[int(result.number("chosen"))]

    def _charts(self, arms: Mapping[str, Mapping[int, Result]]) -> list[Figure]:
        at = [float(step + 1) for step in self._shown()]
        losses, steps = [], []
        for arm, runs in arms.items():
            # Where every answer is right beyond float32's doubt the loss is 0, which has no logarithm.
            curves = [[math.log(max(loss, 1e-9)) for loss in result.numbers("curve")] for result in runs.values()]
            losses.append(_band(_LABELS[arm], at, curves, _COLORS[arm]))
            counts = [[math.log(count) for count in result.numbers("steps")] for result in runs.values()]
            steps.append(_band(_LABELS[arm], self.rates, counts, _COLORS[arm], markers=True))
        losses.append(Series("tolerance", [at[0], at[-1]], [self.tolerance] * 2, 5, dash="dot"))
        note = "Geometric mean over seeds; the band spans the lowest and the highest seed."
        return [
            Curves(
                "Validation loss of each arm at its best learning rate",
                "training steps",
                "cross-entropy on validation data (nats)",
                losses,
                log_x=True,
                log_y=True,
                note=note,
            ),
            Curves(
                self._rates_title(arms),
                "learning rate",
                "steps to the tolerance",
                steps,
                log_x=True,
                log_y=True,
                note=f"{note} A training that never gets there counts {self.steps} steps.",
            ),
        ]

    def _rates_title(self, arms: Mapping[str, Mapping[int, Result]]) -> str:
        """Compares the rates that work in every seed, in number and in size; in the raw arm, in any seed."""
        flags = {
            arm: list(zip(*(run.numbers("arrived") for run in runs.values()), strict=True))
            for arm, runs in arms.items()
        }
        working = {
            arm: [
                rate
                for rate, column in zip(self.rates, columns, strict=True)
                if (any(column) if arm == _RAW else all(column))
            ]
            for arm, columns in flags.items()
        }
        more = min(len(working[arm]) for arm in _TREATED) > len(working[_RAW])
        if more and not working[_RAW]:
            return "Learning rates work with standardised features, and none with raw ones"
        if more and min(max(working[arm]) for arm in _TREATED) >= _FAR * max(working[_RAW]):
            return "With standardised features far larger learning rates work, and more of them"
        return "Steps to the tolerance at each learning rate"


_DIVERGED = 1e6
_FAR = 10  # "far larger" is by this factor at least
_TREATED = (_STANDARDISED, _NORM_FIRST)
_WORDS = {_RAW: "raw", _STANDARDISED: "standardised", _NORM_FIRST: "batch norm first"}
_LABELS = {_RAW: "raw", _STANDARDISED: "standardised", _NORM_FIRST: "norm first"}
_COLORS = {_RAW: 0, _STANDARDISED: 3, _NORM_FIRST: 1}


def _steps(result: Result) -> float:
    return result.numbers("steps")[int(result.number("chosen"))]


def _arrived(result: Result) -> bool:
    return bool(result.numbers("arrived")[int(result.number("chosen"))])


def _ratio(treatment: Mapping[int, Result], control: Mapping[int, Result]) -> Interval:
    return interval([math.log(_steps(treatment[seed]) / _steps(control[seed])) for seed in control]).exponential()


def _range(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.0f}" if low == high else f"{low:.0f} to {high:.0f}"


def _share(ratio: Interval) -> str:
    return f"{ratio.estimate:.2g} times ({ratio.low:.2g} to {ratio.high:.2g})"


def _band(
    label: str, x: Sequence[float], logs: Sequence[Sequence[float]], color: int, *, markers: bool = False
) -> Series:
    columns = list(zip(*logs, strict=True))
    return Series(
        label,
        x,
        [math.exp(math.fsum(column) / len(column)) for column in columns],
        color,
        [math.exp(min(column)) for column in columns],
        [math.exp(max(column)) for column in columns],
        markers=markers,
    )


CLAIM = InputStandardisation()
