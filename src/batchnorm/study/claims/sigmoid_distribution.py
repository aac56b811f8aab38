"""With batch norm, the inputs of a hidden sigmoid keep their distribution while the network trains."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ...report.chart import Curves, Figure, Intervals, Panels, Row, Series
from ..claim import About, Claim, Conclusion, Effect, Report, Result, Run, Topic, Value, Verdict, by_arm
from ..data import Source, Split, split
from ..learning import LEARNT, SHARE, baseline, learnt, shortfall
from ..networks import fully_connected
from ..search import ends
from ..statistics import Interval, interval, paired
from ..training import Recipe, train

__all__ = ["CLAIM", "SigmoidDistribution", "binarised", "drift"]

Array = npt.NDArray[np.float64]
_SHARES = (0.15, 0.5, 0.85)


def binarised(parts: Split) -> Split:
    """Every pixel becomes 1 where it is above the middle of the training images' range, else 0."""
    images = parts.train[0]
    middle = (images.min() + images.max()) / 2
    train_part, validation, test = (
        ((images > middle).float(), labels) for images, labels in (parts.train, parts.validation, parts.test)
    )
    return Split(train_part, validation, test)


def drift(percentiles: Array) -> tuple[Array, Array]:
    """How far the percentiles of each unit move over training, in widths of that unit's own distribution.

    The unit of length is the distance from the 15th to the 85th percentile, averaged over the looks. So the result
    does not change if all inputs of a unit are multiplied by a constant: a net is not stable for being small.

    Args:
        percentiles: (looks, 3, units): the 15th, 50th and 85th.

    Returns:
        For each unit the excursion, from the lowest to the highest value of a percentile, and the path, the sum of
        its moves from look to look; both averaged over the three percentiles.
    """
    width = (percentiles[:, 2] - percentiles[:, 0]).mean(0)
    width = np.maximum(width, np.finfo(np.float32).tiny)  # a unit that gives one value to all images
    excursion = np.ptp(percentiles, axis=0).mean(0)
    path = np.abs(np.diff(percentiles, axis=0)).sum(0).mean(0)
    return excursion / width, path / width


@torch.no_grad()
def _percentiles(model: nn.Sequential, images: Tensor, training: bool) -> list[Array]:
    """Percentiles (3, units) of what each sigmoid gets; the model's mode and buffers are kept."""
    buffers = [buffer.clone() for buffer in model.buffers()]
    before = model.training
    model.train(training)
    hidden, caught = images, []
    for module in model:
        if isinstance(module, nn.Sigmoid):
            ordered = hidden.T.contiguous().sort(dim=1).values.double().numpy()
            places = [round(share * (ordered.shape[1] - 1)) for share in _SHARES]
            caught.append(np.ascontiguousarray(ordered[:, places].T))
        hidden = module(hidden)
    model.train(before)
    for buffer, value in zip(model.buffers(), buffers, strict=True):
        buffer.copy_(value)
    return caught


@dataclass(frozen=True)
class SigmoidDistribution(Claim):
    """Trains the paper's small sigmoid network with and without batch norm, and follows its sigmoids' inputs.

    Args:
        hidden: Units of the hidden layers.
        rates: Learning rates that both networks are searched over.
        steps: Updates of each run.
        every: Steps between two looks.
        norm: False builds every arm without batch norm: the effect removed.
        share: Of the way from guessing to 100%, what both networks must come: one that learns nothing may well
            stand still.
        stable: The share of the plain net's drift that counts as stable.
    """

    hidden: tuple[int, ...] = (100, 100, 100)
    rates: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0)
    steps: int = 1250
    every: int = 50
    norm: bool = True
    share: float = SHARE
    stable: float = 0.75

    about: ClassVar[About] = About(
        id="sigmoid-distribution",
        topic=Topic.CONTESTED,
        title="Batch norm keeps the distribution of a sigmoid's inputs stable",
        statement=(
            "While a network trains, what a hidden sigmoid gets as input changes its distribution, because the layers "
            "before it change. With batch norm in front of the sigmoids that distribution is more stable."
        ),
        formula=(
            r"\text{drift} = \operatorname*{median}_{u}\; \frac{1}{3}\sum_{q \in \{15, 50, 85\}} "
            r"\frac{\max_t P_q^{u}(t) - \min_t P_q^{u}(t)}{\operatorname{mean}_t\, (P_{85}^{u}(t) - P_{15}^{u}(t))}"
            r", \qquad P_q^{u}(t) = q\text{th percentile of the input of sigmoid } u \text{ after } t \text{ steps}"
        ),
        source="Ioffe & Szegedy 2015, Batch Normalization (arXiv 1502.03167), Section 4.1 and Figure 1",
        paper=(
            "The paper shows curves and no number: the 15th, 50th and 85th percentiles of the input of one typical "
            "sigmoid of the last hidden layer, on MNIST, over 50,000 steps. Here all units of that layer count, in "
            "1,250 steps, and on the default data from a twentieth of the images (3,000 of 60,000): only the direction "
            "can be compared."
        ),
        setup=(
            "The paper's network: three hidden layers of 100 sigmoids, binary images (whatever the data, a pixel "
            "becomes 1 above the middle of the pixels' range and else 0), batches of 60; batch norm, where there is "
            "one, stands in front of every sigmoid. Glorot's initialisation, SGD with momentum 0.9, 1,250 steps where "
            "the paper has 50,000, a constant learning rate. Both networks are searched over rates 0.1, 0.3, 1 "
            "and 3: in each seed, the rate with the best validation accuracy. (A first study on these seeds ended at "
            "1, which batch norm chose in every seed; so the grid was widened.) Both arms of "
            "a seed have the same split, initial weights and batch order. The percentiles are taken on the validation "
            "images, always the same, before the first step and every 50 steps; batch norm uses the "
            "statistics of these images, as it uses a batch's in training. The test split is used once a run, with "
            "the weights that were best on the validation split."
        ),
        metric=(
            "drift of the last hidden layer: how far the 15th, 50th and 85th percentile wander over the whole "
            "training, from lowest to highest, in units of the typical distance from the 15th to the 85th of the "
            "same unit; the median over all units"
        ),
        direction="less drift with batch norm: a ratio below 1",
        pass_rule=(
            "Ratio of drift, batch norm (tuned) to plain (tuned), paired by seed, in logarithms. Stable means at "
            "least a quarter less. Reproduced: the 95% interval of the ratio lies below 0.75. Not reproduced: it "
            "lies above 0.75. Otherwise, or if either network has not learnt in one of the seeds, inconclusive: a "
            "network that does not learn may stand still for that reason. " + LEARNT
        ),
        control="The arms named batch norm are built without it.",
        budget=90,
        smallest=60,
    )

    def without_effect(self) -> SigmoidDistribution:
        """No arm has batch norm."""
        return replace(self, norm=False)

    def _name(self, kind: str, rate: float) -> str:
        return f"{kind} at {rate:g}"

    def plan(self, seeds: Sequence[int], data: Source | None) -> list[Run]:
        """One run a network, learning rate and seed."""
        return [
            Run(self.about.id, self._name(kind, rate), seed, data)
            for seed in seeds
            for kind in ("norm", "plain")
            for rate in self.rates
        ]

    def execute(self, run: Run, report: Report) -> dict[str, Value]:
        """Trains one network and follows the percentiles of all its sigmoids."""
        kind, rate = run.arm.split(" at ")
        parts = binarised(split(run.source, run.seed))
        probe = parts.validation[0]
        model = fully_connected(
            (probe[0].numel(), *self.hidden, parts.classes),
            activation="sigmoid",
            norm="before" if self.norm and kind == "norm" else "none",
            seed=run.seed,
        )
        batch, running = [_percentiles(model, probe, True)], []

        def look(step: int) -> None:
            batch.append(_percentiles(model, probe, True))
            running.append(_percentiles(model, probe, False)[-1])

        recipe = Recipe(float(rate), steps=self.steps, every=self.every)
        history = train(model, parts, recipe, seed=run.seed, report=report, watch=look)
        values: dict[str, Value] = {
            "steps": [0.0, *(float(step) for step in history.steps)],
            "validation": list(history.validation),
            "best": max(history.validation),
            "test": history.test,
            **baseline(parts),
        }
        for layer in range(len(self.hidden)):
            excursion, path = drift(np.stack([percentiles[layer] for percentiles in batch]))
            values[f"drift {layer + 1}"] = float(np.median(excursion))
            values[f"drift {layer + 1}, upper tenth"] = float(np.quantile(excursion, 0.9))
            values[f"path {layer + 1}"] = float(np.median(path))
        # The running statistics before the first step describe nothing, so these looks start with the first one.
        values["drift, running statistics"] = float(np.median(drift(np.stack(running))[0]))
        last = np.stack([percentiles[-1] for percentiles in batch])
        typical = int(np.argsort(drift(last)[0], kind="stable")[self.hidden[-1] // 2])
        for place, share in enumerate(_SHARES):
            values[f"typical {100 * share:.0f}"] = [float(value) for value in last[:, place, typical]]
        away = np.abs(last - last[-1]).mean(1) / np.maximum((last[:, 2] - last[:, 0]).mean(0), 1e-30)
        values["away"] = [float(value) for value in np.median(away, axis=1)]
        return values

    def conclude(self, results: Sequence[Result]) -> Conclusion:
        """Compares the drift of the last hidden layer, each network at the rate that validates best."""
        runs = by_arm(results)
        seeds = sorted({result.run.seed for result in results})

        def best(kind: str, seed: int) -> Result:
            arms = [runs[self._name(kind, rate)][seed] for rate in self.rates]
            return max(arms, key=lambda result: result.number("best"))

        norm = {seed: best("norm", seed) for seed in seeds}
        plain = {seed: best("plain", seed) for seed in seeds}
        same = {seed: runs[plain[seed].run.arm.replace("plain", "norm")][seed] for seed in seeds}
        depth = len(self.hidden)

        def ratio(name: str, what: str, treatment: Mapping[int, Result] = norm) -> Effect:
            logs = [_log(treatment[seed].number(what)) - _log(plain[seed].number(what)) for seed in seeds]
            return Effect(name, interval(logs).exponential(), "×", ratio=True)

        main = ratio("Drift, last hidden layer, each at its best rate: batch norm against plain", f"drift {depth}")
        others = [
            ratio("Drift, last hidden layer, both at the plain net's best rate", f"drift {depth}", same),
            *(ratio(f"Drift, hidden layer {layer}", f"drift {layer}") for layer in range(depth - 1, 0, -1)),
            ratio("Drift of the unit at the upper tenth, last hidden layer", f"drift {depth}, upper tenth"),
            ratio(f"Path from look to look (every {self.every} steps), last hidden layer", f"path {depth}"),
            ratio("Drift in evaluation mode, last hidden layer, from the first look on", "drift, running statistics"),
        ]
        accuracy = Effect(
            "Test accuracy: batch norm (tuned) minus plain (tuned)",
            paired([norm[s].number("test") for s in seeds], [plain[s].number("test") for s in seeds]).scaled(100),
            "points",
        )
        lacking = [arm[seed] for arm in (norm, plain) for seed in seeds if not learnt(arm[seed], self.share)]
        drifts = {
            name: float(np.mean([arm[seed].number(f"drift {depth}") for seed in seeds]))
            for name, arm in (("norm", norm), ("plain", plain))
        }
        reason = (
            f"With batch norm the percentiles wander over {drifts['norm']:.2f} widths of a unit's distribution, "
            f"without it over {drifts['plain']:.2f}; paired by seed, {main.interval.estimate:.2f} times as far "
            f"({main.interval.low:.2f} to {main.interval.high:.2f})."
        )
        if lacking:
            reason += f" But a network stayed at {shortfall(lacking[0], self.share)}, so the comparison says nothing."
        chosen = {
            name: ", ".join(f"{arm[seed].run.arm.split(' at ')[1]}" for seed in seeds)
            for name, arm in (("plain", plain), ("norm", norm))
        }
        findings = [
            f"Rates chosen on the validation split, seed by seed: plain {chosen['plain']}; batch norm "
            f"{chosen['norm']}. " + ends([(_rate(arm[seed]), self.rates) for arm in (plain, norm) for seed in seeds]),
            "Batch norm makes part of this true by construction: on the batch it normalises, the mean of a sigmoid's "
            "input is beta and its standard deviation is |gamma|. What can still drift are these two and the shape.",
            f"Drift is not harm.{_spreading(list(plain.values()))} Test accuracy is measured beside it and is no part "
            "of the verdict.",
        ]
        return Conclusion(
            self._verdict(main.interval, bool(lacking)),
            reason,
            [main, *others, accuracy],
            self._charts(seeds, norm, plain, [main, *others]),
            findings,
        )

    def _verdict(self, ratio: Interval, lacking: bool) -> Verdict:
        if lacking:
            return Verdict.INCONCLUSIVE
        if ratio.high < self.stable:
            return Verdict.REPRODUCED
        return Verdict.NOT_REPRODUCED if ratio.low > self.stable else Verdict.INCONCLUSIVE

    def _charts(
        self,
        seeds: Sequence[int],
        norm: Mapping[int, Result],
        plain: Mapping[int, Result],
        ratios: Sequence[Effect],
    ) -> list[Figure]:
        arms = (("without batch norm", plain, 0), ("with batch norm", norm, 1))
        first = seeds[0]
        edges = [v for _, arm, _ in arms for name in ("typical 15", "typical 85") for v in arm[first].numbers(name)]
        room = 0.05 * (max(edges) - min(edges))
        units = []
        for label, arm, color in arms:
            low, middle, high = (arm[first].numbers(f"typical {share}") for share in (15, 50, 85))
            units.append(
                Curves(
                    f"{label[0].upper()}{label[1:]}, rate {arm[first].run.arm.split(' at ')[1]}",
                    "training steps",
                    "input of the sigmoid",
                    [Series("median", arm[first].numbers("steps"), middle, color, low, high)],
                    y_range=(min(edges) - room, max(edges) + room),
                )
            )
        away = []
        for label, arm, color in (("plain", plain, 0), ("batch norm", norm, 1)):
            table = np.array([arm[seed].numbers("away") for seed in seeds])
            steps = arm[first].numbers("steps")
            away.append(
                Series(label, steps, _floats(table.mean(0)), color, _floats(table.min(0)), _floats(table.max(0)))
            )
        # The lines meet at the end, which is where the distance is measured from.
        without, with_norm = (line.y[:-1] for line in away)
        closer = [ours < theirs for ours, theirs in zip(with_norm, without, strict=True)]
        return [
            Panels(
                "A typical sigmoid of the last hidden layer: what it gets as input during training",
                units,
                note=(
                    f"Seed {first}. Line: the median over the validation images; band: from the 15th to the 85th "
                    "percentile. The typical unit of a network is the one with the median drift."
                ),
            ),
            Curves(
                f"All units: at {sum(closer)} of {len(closer)} looks the inputs are closer to their final distribution "
                "with batch norm"
                if sum(closer) > len(closer) / 2
                else "All units: how far the inputs are from their final distribution",
                "training steps",
                "distance from the end (widths of a unit)",
                away,
                note=(
                    "Distance of the three percentiles from their values after the last step, the median over all "
                    "units of the last hidden layer. Mean over seeds; the band spans the lowest and the highest seed."
                ),
            ),
            Intervals(
                "Drift with batch norm, as a share of the plain net's",
                "share of the plain net's drift",
                [Row(_row(e.name), e.interval.estimate, e.interval.low, e.interval.high) for e in ratios],
                1.0,
                "plain net",
                log_x=True,
                note="95% intervals over seeds.",
            ),
        ]


def _spreading(plain: Sequence[Result]) -> str:
    """A sentence on how the plain net's typical unit spreads out while it learns, where it does in every seed."""
    widths = [
        [upper - lower for lower, upper in zip(run.numbers("typical 15"), run.numbers("typical 85"), strict=True)]
        for run in plain
    ]
    if not all(width[-1] > 2 * width[0] for width in widths):
        return ""
    first, last = (float(np.median([width[place] for width in widths])) for place in (0, -1))
    return (
        " Part of the plain net's is learning: its typical sigmoid spreads out as it learns to tell images apart, from "
        f"{first:.2g} between the 15th and the 85th percentile to {last:.2g} (medians over seeds)."
    )


def _rate(result: Result) -> float:
    return float(result.run.arm.split(" at ")[1])


def _row(name: str) -> str:
    return name.removesuffix(": batch norm against plain")


def _log(value: float) -> float:
    # A layer that never moves would have no logarithm; 1e-6 of a width is as good as none.
    return math.log(max(value, 1e-6))


def _floats(values: Array) -> list[float]:
    return [float(value) for value in values]


CLAIM = SigmoidDistribution()
