"""Averaging batch variances leaves out the variance between batch means, which counts where batches differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ... import BatchNorm1d, BatchNorm2d
from ...reference.population import average_of_batches, law_of_total_variance
from ...report.chart import Curves, Series
from ..claim import About, Claim, Conclusion, Effect, Report, Result, Run, Topic, Value, Verdict, by_arm
from ..data import Source, split
from ..statistics import Interval, interval, paired
from ..training import Recipe, train

__all__ = ["CLAIM", "PopulationVariance"]

Array: TypeAlias = npt.NDArray[np.float64]
_OverSeeds: TypeAlias = Callable[[Sequence[Result], str, str, int], list[float]]
_MEAN_OF_BATCHES, _TOTAL = "algorithm_2", "total_variance"


def _network(channels: int, classes: int, seed: int) -> nn.Sequential:
    """Two convolutions and a fully connected layer, each followed by batch norm."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(channels, 8, 3, stride=2, padding=1),
        BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(256, 64),
        BatchNorm1d(64),
        nn.ReLU(),
        nn.Linear(64, classes),
    )
    for module in model:
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
    return model


def _inputs_of_norms(model: nn.Sequential, images: Tensor) -> dict[str, Array]:
    """What each batch norm of the model gets in evaluation mode, as (N, C, positions) in float64."""
    caught: dict[str, Array] = {}
    model.eval()
    hidden = images
    kinds: dict[str, int] = {}
    with torch.no_grad():
        for module in model:
            if isinstance(module, BatchNorm1d | BatchNorm2d):
                kind = "convolution" if isinstance(module, BatchNorm2d) else "fully connected"
                kinds[kind] = kinds.get(kind, 0) + 1
                name = f"{kind} {kinds[kind]}"
                caught[name] = hidden.numpy().astype(np.float64).reshape(*hidden.shape[:2], -1)
            hidden = module(hidden)
    return caught


def _errors(values: Array, batch: int) -> dict[str, Array]:
    """Relative error of both estimates for each channel, given (N, C, positions) in the order of batches."""
    count, channels, positions = values.shape
    batches = values.reshape(count // batch, batch, channels, positions)
    means, variances = batches.mean(axis=(1, 3)), batches.var(axis=(1, 3))
    truth = values.var(axis=(0, 2))
    # A channel without variance has no relative error, nor has one whose values are not numbers.
    alive = truth > 1e-12 * truth.max()
    _, algorithm = average_of_batches(means, variances, batch * positions)
    _, total = law_of_total_variance(means, variances)
    return {
        _MEAN_OF_BATCHES: algorithm[alive] / truth[alive] - 1,
        _TOTAL: total[alive] / truth[alive] - 1,
    }


@dataclass(frozen=True)
class PopulationVariance(Claim):
    """Compares both estimates with the pooled variance, on the activations of a trained network.

    Args:
        batch_sizes: Images in a batch.
        decisive: The batch size that the verdict looks at.
        steps: Updates of the network's training.
        orders: How images are put into batches; the verdict looks at the first. "sorted" is by class, "random"
            shuffled, and "identical" makes every batch the same: the effect removed.
        margin: The relative error that counts as one.
        exact: The largest relative error that still counts as none.
    """

    batch_sizes: tuple[int, ...] = (2, 4, 8, 16, 32, 64, 128, 256)
    decisive: int = 32
    steps: int = 150
    orders: tuple[str, ...] = ("sorted", "random")
    margin: float = 0.01
    exact: float = 1e-9

    about: ClassVar[About] = About(
        id="population-variance",
        topic=Topic.HURTS,
        title="Averaging batch variances loses the variance between batches",
        statement=(
            "For inference, batch norm needs the variance of a layer's input over all data. The paper's "
            "Algorithm 2 averages the variances of batches. That leaves out how far the means of the batches lie "
            "apart. Where every batch is a fair draw from the data the paper's factor m/(m − 1) makes up for it; "
            "where batches differ, as when data come in the order of their classes, the result is too small, at "
            "any batch size. Adding the variance of the means (the law of total variance) puts it right."
        ),
        formula=(
            r"\text{Algorithm 2: } \frac{m}{m - 1}\,E[\sigma_B^2] \qquad \text{total variance: } "
            r"E[\sigma_B^2] + \operatorname{Var}[\mu_B]"
        ),
        symbols=(
            "Here E and Var are over batches B of m values each, with mean μ_B and variance σ_B². The law of total "
            "variance is the same as E[μ_B² + σ_B²] − E[μ_B]²."
        ),
        calculation=True,
        source=(
            "Ioffe & Szegedy 2015 (arXiv 1502.03167), Algorithm 2; Wu & Johnson 2021, Rethinking 'Batch' in "
            "BatchNorm (arXiv 2105.07576), on population statistics"
        ),
        paper=None,
        setup=(
            "A network of two convolutions and a fully connected layer, each with batch norm, trained briefly. "
            "Then, in evaluation mode, so that the layers' inputs are one fixed set: the training images pass "
            "once, sorted by class (as MNIST-5k's file has them), and once shuffled, in batches of 2 to 256. "
            "The truth is the pooled variance of all values of a channel, divided by their number. A pilot on "
            "two other seeds showed that shuffled images give hardly any error; the rule is about sorted ones."
        ),
        metric="relative error of the estimated variance, averaged over all channels of all normalised layers",
        direction="Algorithm 2 below 0; the law of total variance 0",
        pass_rule=(
            "At batches of 32 images sorted by class. Reproduced: the 95% interval of Algorithm 2's relative "
            "error lies below −1%, and the law of total variance is right to 1e-9 in every channel, layer, batch "
            "size and seed. Not reproduced: Algorithm 2's interval lies above −1%, or the law of total variance "
            "is off by as much as Algorithm 2. Otherwise inconclusive; so too if in some seed no channel has any "
            "variance."
        ),
        control="Every batch is the same one, so that there is no variance between batches.",
        budget=20,
        smallest=256,
    )

    def without_effect(self) -> PopulationVariance:
        """Every batch is the same."""
        return replace(self, orders=("identical",))

    def plan(self, seeds: Sequence[int], data: Source | None) -> list[Run]:
        """One run an order and seed."""
        return [Run(self.about.id, order, seed, data) for seed in seeds for order in self.orders]

    def execute(self, run: Run, report: Report) -> dict[str, Value]:
        """Trains, collects the inputs of the norms, and gives the errors by layer and batch size."""
        parts = split(run.source, run.seed)
        model = _network(parts.channels, parts.classes, run.seed)
        recipe = Recipe(0.05, steps=self.steps, every=self.steps)
        history = train(model, parts, recipe, seed=run.seed, report=lambda done, note: report(0.6 * done, note))
        largest = max(self.batch_sizes)
        images, labels = parts.train
        usable = len(images) // largest * largest  # so that every batch size divides the set
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(run.seed))[:usable]
        if run.arm == "sorted":
            order = order[torch.argsort(labels[order], stable=True)]
        caught = _inputs_of_norms(model, images[order])
        values: dict[str, Value] = {"images": usable, "accuracy": history.validation[-1]}
        for name, inputs in caught.items():
            signed: dict[str, list[float]] = {_MEAN_OF_BATCHES: [], _TOTAL: []}
            widest: dict[str, list[float]] = {_MEAN_OF_BATCHES: [], _TOTAL: []}
            channels: list[float] = []
            for batch in self.batch_sizes:
                report(0.7, f"{name}, batches of {batch}")
                pool = inputs
                if run.arm == "identical":
                    pool = np.tile(inputs[:batch], (usable // batch, 1, 1))
                found = _errors(pool, batch)
                channels.append(float(len(found[_TOTAL])))
                for estimate, errors in found.items():
                    # Where no channel varies the 0 counts for nothing: the layer's weight is 0 too.
                    signed[estimate].append(float(errors.mean()) if len(errors) else 0.0)
                    widest[estimate].append(float(np.abs(errors).max()) if len(errors) else 0.0)
            values[f"{name}/channels"] = channels
            for estimate in (_MEAN_OF_BATCHES, _TOTAL):
                values[f"{name}/{estimate}/mean"] = signed[estimate]
                values[f"{name}/{estimate}/largest"] = widest[estimate]
        return values

    def conclude(self, results: Sequence[Result]) -> Conclusion:
        """Looks at the signed error of Algorithm 2 and the largest error of the law of total variance."""
        arms = by_arm(results)
        main = list(arms[self.orders[0]].values())
        place = self.batch_sizes.index(self.decisive)
        still = [run.run.seed for run in main if not _measured([run], "", place)]
        if still:
            reason = f"With seed {', '.join(map(str, still))} no channel has any variance that could be estimated."
            return Conclusion(Verdict.INCONCLUSIVE, reason, [])

        def over_seeds(runs: Sequence[Result], kind: str, estimate: str, index: int) -> list[float]:
            """One number a seed: the mean over the channels of all layers of a kind ("" for all layers)."""
            means = []
            for run in runs:
                names = _layers(run, kind)
                channels = [run.numbers(f"{name}/channels")[index] for name in names]
                errors = [run.numbers(f"{name}/{estimate}/mean")[index] for name in names]
                means.append(float(np.average(errors, weights=channels)))
            return means

        measured = over_seeds(main, "", _MEAN_OF_BATCHES, place)
        algorithm = interval(measured)
        totals = [max(max(run.numbers(f"{name}/{_TOTAL}/largest")) for name in _layers(run, "")) for run in main]
        total = max(totals)
        if algorithm.low > -self.margin or total >= abs(algorithm.estimate):
            verdict = Verdict.NOT_REPRODUCED
        elif algorithm.high < -self.margin and total <= self.exact:
            verdict = Verdict.REPRODUCED
        else:
            verdict = Verdict.INCONCLUSIVE
        gap = paired(measured, over_seeds(main, "", _TOTAL, place))
        names = {"sorted": "sorted by class", "random": "shuffled", "identical": "identical batches"}
        effects = [
            Effect(
                f"Algorithm 2: relative error, batches of {self.decisive}, {names[self.orders[0]]}",
                algorithm.scaled(100),
                "%",
            ),
            Effect("Algorithm 2 minus law of total variance, the same batches", gap.scaled(100), "points"),
        ]
        law = Effect(
            "Law of total variance: largest relative error of a channel, layer and batch size",
            interval(totals).scaled(100),
            "%",
        )
        # The effect that decided comes first: the remedy's, where that is what failed.
        effects.insert(0 if total > self.exact and algorithm.high < -self.margin else len(effects), law)
        for arm, runs in arms.items():
            for kind, index in (("convolution", place), ("fully connected", place), ("fully connected", 0)):
                if not _measured(list(runs.values()), kind, index):
                    continue
                values = over_seeds(list(runs.values()), kind, _MEAN_OF_BATCHES, index)
                label = f"Algorithm 2, {kind} only, batches of {self.batch_sizes[index]}, {names[arm]}"
                effects.append(Effect(label, interval(values).scaled(100), "%"))
        titles = {
            "sorted": "Relative error with images sorted by class",
            "random": "Relative error with shuffled images",
            "identical": "Relative error with identical batches",
        }
        charts = [self._chart(titles[arm], list(runs.values()), over_seeds) for arm, runs in arms.items()]

        shares = [
            f"{_percentage(over_seeds(main, kind, _MEAN_OF_BATCHES, place))} in the {words}"
            for kind, words in (("fully connected", "fully connected layer"), ("convolution", "convolutions"))
            if _measured(main, kind, place)
        ]
        return Conclusion(
            verdict,
            f"At batches of {self.decisive} ({names[self.orders[0]]}) Algorithm 2 is off by {_percentage(measured)} "
            f"over all channels ({', '.join(shares)}); the law of total variance by at most {100 * total:.1g}% in any "
            "channel, layer, batch size and seed.",
            effects,
            charts,
            findings=[
                "What each estimates: Algorithm 2 is unbiased for the variance with divisor n − 1 if the m values "
                "of a batch are independent draws; m counts pixels too, and those of one image are not "
                "independent. The law of total variance gives the pooled variance with divisor n of exactly the "
                "values seen: over a full pass with equal batches that is an identity, so what is measured for "
                "it here is rounding."
                if total <= self.exact
                else "it here should be rounding.",
            ],
        )

    def _chart(self, title: str, runs: Sequence[Result], over_seeds: _OverSeeds) -> Curves:
        sizes = [float(batch) for batch in self.batch_sizes]
        lines = []
        for label, kind, estimate, color, dash in (
            ("Algorithm 2, convolutions", "convolution", _MEAN_OF_BATCHES, 2, "solid"),
            ("Algorithm 2, fully connected", "fully connected", _MEAN_OF_BATCHES, 4, "dash"),
            ("law of total variance", "", _TOTAL, 1, "solid"),
        ):
            shown = [index for index in range(len(sizes)) if _measured(runs, kind, index)]
            spans = [interval(over_seeds(runs, kind, estimate, index)) for index in shown]
            if shown:
                lines.append(_line(label, [sizes[index] for index in shown], spans, color, dash))
        return Curves(
            title,
            "batch size (images)",
            "relative error of the variance (%)",
            lines,
            log_x=True,
            x_ticks=sizes,
            note="Mean over channels; bands are 95% intervals over seeds.",
        )


def _line(label: str, sizes: list[float], spans: Sequence[Interval], color: int, dash: str) -> Series:
    percent = [span.scaled(100) for span in spans]
    bounded = all(np.isfinite(span.low) for span in spans)
    return Series(
        label,
        sizes,
        [span.estimate for span in percent],
        color,
        [span.low for span in percent] if bounded else None,
        [span.high for span in percent] if bounded else None,
        dash,
        markers=True,
    )


def _percentage(values: Sequence[float]) -> str:
    return f"{100 * float(np.mean(values)):.3g}%".replace("-", "−")


def _measured(runs: Sequence[Result], kind: str, index: int) -> bool:
    """Whether every run has a channel of a layer of this kind that varies, at this batch size."""
    return all(any(run.numbers(f"{name}/channels")[index] for name in _layers(run, kind)) for run in runs)


def _layers(result: Result, kind: str) -> list[str]:
    names = dict.fromkeys(name.split("/")[0] for name in result.values if "/" in name)
    return [name for name in names if name.startswith(kind)]


CLAIM = PopulationVariance()
