"""Scale and shift give the layer back what standardisation took, and matter as much as what follows needs them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ... import BatchNorm1d, BatchNorm2d
from ...report.chart import Figure, Intervals, Row
from ...report.number import signed
from ..claim import About, Claim, Conclusion, Effect, Report, Result, Run, Topic, Value, Verdict, by_arm
from ..data import Source, Split, split
from ..learning import LEARNT, baseline, learnt, shortfall
from ..networks import convolutional, fully_connected
from ..statistics import Interval, interval, paired
from ..training import Recipe, train

__all__ = ["CLAIM", "GammaBeta", "Place", "least_loss"]

_DECIDE = ("output", "relu")  # the places whose losses the verdict compares
_DIVERGED = 1e6  # what a loss or an error counts as that is larger, or no number


@dataclass(frozen=True)
class Place:
    """Where batch norm stands, and how that network is trained.

    Args:
        label: In words, for tables and charts.
        rates: Learning rates at the first step, with and without gamma and beta alike.
        color: In charts.
    """

    label: str
    rates: tuple[float, ...]
    color: int


def least_loss(classes: int) -> float:
    """The lowest cross entropy in training that a batch can have whose outputs are standardised, each class's apart.

    With K outputs z of mean 0 and mean square 1 over the batch, the right output leads the others on average by at
    most K/√(K − 1): the images of a class that has the share p of the batch cannot have a mean output above
    √((1 − p)/p), and Σ √(p(1 − p)) is largest where the classes have equal shares. The loss is convex in these
    leads, so it is at least log(1 + (K − 1)·exp(−K/√(K − 1))): 0.278 for ten classes, whatever the weights before.
    """
    return math.log1p((classes - 1) * math.exp(-classes / math.sqrt(classes - 1)))


@dataclass(frozen=True)
class GammaBeta(Claim):
    """Checks the identity on real activations, and trains with and without gamma and beta in several places.

    Args:
        hidden: Units of the fully connected networks' hidden layers.
        layers: Channels and stride of the convolutional network's convolutions.
        rates: Learning rates before ReLU and before the softmax.
        sigmoid_rates: Before sigmoid.
        convolutional_rate: The one rate of the convolutional network.
        steps: Updates of each run.
        every: Steps between two looks at the validation split.
        probe: Images of the batch on which the identity is checked, at most.
        affine: False leaves gamma at 1 and beta at 0 everywhere: the effect removed.
        exact: The largest relative error that still counts as the identity.
        margin: The difference of losses, in nats, that the verdict asks for.
    """

    hidden: tuple[int, ...] = (100, 100)
    layers: tuple[tuple[int, int], ...] = ((8, 2), (16, 2), (32, 2))
    rates: tuple[float, ...] = (0.05, 0.2)
    sigmoid_rates: tuple[float, ...] = (0.2, 0.8)
    convolutional_rate: float = 0.2
    steps: int = 250
    every: int = 50
    probe: int = 500
    affine: bool = True
    exact: float = 1e-10
    margin: float = 0.05

    about: ClassVar[About] = About(
        id="gamma-beta",
        topic=Topic.DOES,
        title="Gamma and beta can undo the standardisation; how much they matter depends on what follows",
        statement=(
            "Standardising a layer's output could take away what the layer can represent, so batch norm scales it by "
            "gamma and shifts it by beta. Two things are claimed. With gamma the standard deviation and beta the mean "
            "of the batch, batch norm is the identity: nothing is lost. And how much gamma and beta matter in "
            "training depends on what follows: before a ReLU and another layer, that layer can do most of their work; "
            "before the softmax nothing can."
        ),
        formula=(
            r"\gamma = \sqrt{\sigma_B^2 + \varepsilon},\ \beta = \mu_B \;\Rightarrow\; "
            r"\gamma\,\frac{x - \mu_B}{\sqrt{\sigma_B^2 + \varepsilon}} + \beta = x; \qquad "
            r"\text{contrast} = \Delta_{\text{softmax}} - \Delta_{\text{ReLU}}, \qquad "
            r"\Delta = L_{\text{without}} - L_{\text{with}}"
        ),
        symbols=(
            "Here μ and σ are the mean and standard deviation of a batch B, L is the test loss without and with gamma "
            "and beta, and Δ is taken where batch norm stands before the softmax and before ReLU."
        ),
        source=(
            "Ioffe & Szegedy 2015 (arXiv 1502.03167), Section 3, on gamma and beta; that what follows decides is "
            "an argument made here, with the bound that the findings state"
        ),
        paper=None,
        setup=(
            "Two hidden layers of 100 units, with batch norm before each ReLU, before each sigmoid, or only on the "
            "outputs before the softmax (hidden layers plain, ReLU); each trained with gamma and beta and without, "
            "250 steps of SGD with momentum 0.9, batches of 60, the learning rate falling in a straight line to 0. "
            "Both are searched over the same rates (0.05 and 0.2; before sigmoids 0.2 and 0.8): in each seed, the "
            "rate with the best validation accuracy. A small convolutional network with ReLU, at one rate, is "
            "measured too and is no part of the verdict. Both arms of a seed have the same split, initial weights "
            "and batch order. The identity is checked in float64 on the inputs that every batch norm of the trained "
            "networks gets from up to 500 validation images; the tolerance leaves room for the rounding of sums over "
            "some 100,000 values. A pilot on other seeds of MNIST-5k showed that before the softmax it is the loss "
            "that changes and hardly the accuracy, so the verdict looks at the loss. The test split is used once a "
            "run, with the weights that were best on the validation split."
        ),
        metric=(
            "largest relative error of the identity; test cross entropy (nats) without minus with gamma and beta, "
            "before the softmax minus before ReLU"
        ),
        direction="identity exact; they matter more before the softmax: a contrast above 0",
        pass_rule=(
            "Both parts decide. Reproduced: the identity holds to 1e-10 of the layer's largest input in every layer "
            "and seed, and the 95% interval of the contrast, paired by seed, lies above 0.05 nats. Not reproduced: the "
            "identity is off by more in any layer and seed, or the interval lies below 0.05. Otherwise inconclusive; "
            "so too if in some seed the network with gamma and beta has not learnt, before the softmax or before "
            "ReLU, or a loss that is compared diverged: without that a contrast could come from the "
            f"shares of the classes alone, which beta can take up. {LEARNT}"
        ),
        control=(
            "Gamma stays 1 and beta 0: in the check of the identity, and in the arms that should train them, which "
            "then equal those without."
        ),
        budget=35,
        smallest=60,
    )

    def without_effect(self) -> GammaBeta:
        """Gamma is 1 and beta 0 everywhere."""
        return replace(self, affine=False)

    def places(self) -> dict[str, Place]:
        """Where batch norm stands, by name."""
        return {
            "output": Place("before the softmax", self.rates, 2),
            "sigmoid": Place("before sigmoids", self.sigmoid_rates, 3),
            "relu": Place("before ReLU", self.rates, 1),
            "convolution": Place("before ReLU, convolutional", (self.convolutional_rate,), 6),
        }

    def plan(self, seeds: Sequence[int], data: Source | None) -> list[Run]:
        """One run a place, arm, learning rate and seed."""
        return [
            Run(self.about.id, f"{name} {arm} {rate:g}", seed, data)
            for seed in seeds
            for name, place in self.places().items()
            for arm in ("with", "without")
            for rate in place.rates
        ]

    def _network(self, place: str, affine: bool, parts: Split, seed: int) -> nn.Sequential:
        if place == "convolution":
            return convolutional(
                self.layers,
                activation="relu",
                norm="before",
                channels=parts.channels,
                classes=parts.classes,
                seed=seed,
                affine=affine,
            )
        sizes = (parts.train[0][0].numel(), *self.hidden, parts.classes)
        if place == "output":
            plain = fully_connected(sizes, activation="relu", norm="none", seed=seed)
            return nn.Sequential(*plain, BatchNorm1d(parts.classes, affine=affine))
        return fully_connected(sizes, activation=place, norm="before", seed=seed, affine=affine)

    def execute(self, run: Run, report: Report) -> dict[str, Value]:
        """Trains one network, and checks the identity on the inputs of its norms."""
        place, arm, rate = run.arm.split()
        parts = split(run.source, run.seed)
        model = self._network(place, self.affine and arm == "with", parts, run.seed)
        recipe = Recipe(float(rate), steps=self.steps, every=self.every, decay=True)
        history = train(model, parts, recipe, seed=run.seed, report=report)
        values: dict[str, Value] = {
            "best": max(history.validation),
            "test": history.test,
        }
        with torch.no_grad():
            model.eval()
            values["test loss"] = _finite(cross_entropy(model(parts.test[0]), parts.test[1]))
            model.train()
            values["training loss"] = _finite(cross_entropy(model(parts.train[0]), parts.train[1]))
            values["least loss"] = least_loss(parts.classes)
            values |= baseline(parts)
            if arm == "with":
                values["identity errors"] = self._identity_errors(model, parts.validation[0][: self.probe])
        return values

    def _identity_errors(self, model: nn.Sequential, images: Tensor) -> list[float]:
        """Largest |y − x| of each norm, relative to its largest |x|, with the gamma and beta that restore x."""
        errors = []
        hidden = images.double()
        for module in model.double():
            # A network that diverged has no numbers to be restored: that is not the identity's doing.
            if isinstance(module, BatchNorm1d | BatchNorm2d) and bool(hidden.isfinite().all()):
                kind = BatchNorm2d if isinstance(module, BatchNorm2d) else BatchNorm1d
                norm = kind(module.num_features, dtype=torch.float64)
                if self.affine:
                    dims = [0, *range(2, hidden.dim())]
                    norm.weight.copy_(torch.sqrt(hidden.var(dims, correction=0) + norm.eps))
                    norm.bias.copy_(hidden.mean(dims))
                # All values 0 have no size: then the error itself counts.
                errors.append(_finite((norm(hidden) - hidden).abs().max() / (hidden.abs().max() or 1.0)))
            hidden = module(hidden)
        return errors

    def conclude(self, results: Sequence[Result]) -> Conclusion:
        """Looks at the largest error of the identity and at the contrast of losses."""
        runs = by_arm(results)
        seeds = sorted({result.run.seed for result in results})
        tuned: dict[str, dict[str, list[Result]]] = {}
        for name, place in self.places().items():
            tuned[name] = {
                arm: [max((runs[f"{name} {arm} {rate:g}"][seed] for rate in place.rates), key=_best) for seed in seeds]
                for arm in ("with", "without")
            }
        gains = {name: _differences(arms, "test loss") for name, arms in tuned.items()}
        contrast = paired(gains["output"], gains["relu"])
        errors = _identity_errors(results)
        largest = [max(own, default=0.0) for own in errors]
        worst = max(largest)
        failed = [result for name in _DECIDE for result in tuned[name]["with"] if not learnt(result)]
        compared = [result.number("test loss") for name in _DECIDE for own in tuned[name].values() for result in own]
        diverged = sum(loss >= _DIVERGED for loss in compared)
        sound = not failed and not diverged
        verdict = self._verdict(worst, contrast, sound=sound)
        losses = [
            Effect(
                f"Test cross entropy, without minus with gamma and beta, {place.label}", interval(gains[name]), "nats"
            )
            for name, place in self.places().items()
        ]
        accuracies = [
            Effect(
                f"Test accuracy, with minus without gamma and beta, {place.label}",
                interval([-100 * value for value in _differences(tuned[name], "test")]),
                "points",
            )
            for name, place in self.places().items()
        ]
        first = Effect(
            "Contrast: what they do to the test loss before the softmax, minus before ReLU", contrast, "nats"
        )
        identity = [Effect("Largest relative error of the identity, over all layers", interval(largest))]
        learning = [
            Effect(
                f"Best validation accuracy with gamma and beta, minus guessing, {self.places()[name].label}",
                interval([100 * (result.number("best") - result.number("guessing")) for result in tuned[name]["with"]]),
                "points",
            )
            for name in _DECIDE
        ]
        # The effect that decided comes first: the identity where it fails, then learning where there is none.
        if worst > self.exact:
            effects = [*identity, first, *losses, *accuracies, *learning]
        elif not sound:
            learning.sort(key=lambda effect: effect.interval.estimate)
            effects = [*learning, first, *losses, *accuracies, *identity]
        else:
            effects = [first, *losses, *accuracies, *learning, *identity]
        reason = (
            f"{self._identity(worst, sum(map(len, errors)))} Without gamma and beta "
            f"the test loss changes by {signed(losses[0].interval.estimate, 3)} nats before the softmax and by "
            f"{signed(losses[2].interval.estimate, 3)} before ReLU in the fully connected network: a contrast of "
            f"{contrast.signed(3)}. Before ReLU in the "
            f"convolutional network, which is no part of the verdict, it changes by "
            f"{signed(losses[3].interval.estimate, 3)}."
        )
        if diverged:
            reason += f" But {diverged} of the {len(compared)} losses that are compared have diverged."
        elif failed:
            reason += (
                f" But with gamma and beta {len(failed)} of {len(_DECIDE) * len(seeds)} networks have not learnt: "
                f"{shortfall(failed[0])}."
            )
        bare = [result.number("training loss") for result in tuned["output"]["without"]]
        rates = "; ".join(
            f"{self.places()[name].label}, {arm}: {', '.join(result.run.arm.split()[2] for result in arms[arm])}"
            for name, arms in tuned.items()
            for arm in ("with", "without")
            if len(self.places()[name].rates) > 1
        )
        apart = accuracies[3].interval.low > accuracies[2].interval.high
        findings = [
            f"Why the softmax needs them: outputs of mean 0 and variance 1 cannot lead the others by more than "
            f"K/√(K − 1) on average, so for K classes the training loss of any batch is at least "
            f"log(1 + (K − 1)·exp(−K/√(K − 1))), here {tuned['output']['without'][0].number('least loss'):.3f} nats, "
            f"however long one trains. Measured without gamma and beta: {min(bare):.3f} to {max(bare):.3f}.",
            "Before a ReLU a positive gamma is only a scale that the next layer's weights can take over; beta, the "
            "place of the kink, they cannot. A sigmoid keeps to its nearly linear middle without gamma, which is the "
            "paper's own reason for having it.",
            ("What follows is more than the activation: in" if apart else "In")
            + " the convolutional network, where batch norm stands before "
            f"ReLU too, gamma and beta are worth {accuracies[3].interval.signed(1)} points of test "
            f"accuracy after {self.steps} steps; in the fully connected one {accuracies[2].interval.signed(1)}.",
            f"Rates chosen on the validation split, seed by seed: {rates}.",
        ]
        return Conclusion(verdict, reason, effects, self._charts(losses, accuracies), findings)

    def _verdict(self, worst: float, contrast: Interval, *, sound: bool) -> Verdict:
        if worst > self.exact:
            return Verdict.NOT_REPRODUCED
        if not sound:
            return Verdict.INCONCLUSIVE
        if contrast.high < self.margin:
            return Verdict.NOT_REPRODUCED
        return Verdict.REPRODUCED if contrast.low > self.margin else Verdict.INCONCLUSIVE

    def _identity(self, worst: float, layers: int) -> str:
        if worst <= self.exact:
            return f"The identity holds to {worst:.1g} of the largest input over {layers} layers."
        size = f"{worst:.1g} of the largest input" if worst < _DIVERGED else "more than could be counted"
        return f"The identity is off by up to {size} over {layers} layers."

    def _charts(self, losses: Sequence[Effect], accuracies: Sequence[Effect]) -> list[Figure]:
        def rows(effects: Sequence[Effect]) -> list[Row]:
            return [
                Row(place.label, e.interval.estimate, e.interval.low, e.interval.high, place.color)
                for place, e in zip(self.places().values(), effects, strict=True)
            ]

        return [
            Intervals(
                "What leaving gamma and beta out adds to the test loss, by where batch norm stands",
                "test cross entropy, without minus with (nats)",
                rows(losses),
                0.0,
                "no difference",
                note="95% intervals over seeds.",
            ),
            Intervals(
                "What gamma and beta add to the test accuracy, by where batch norm stands",
                "test accuracy, with minus without (percentage points)",
                rows(accuracies),
                0.0,
                "no difference",
                note="95% intervals over seeds.",
            ),
        ]


def _finite(value: Tensor) -> float:
    """A number that survives JSON and comparisons, which NaN would all lose."""
    number = float(value)
    return min(number, _DIVERGED) if math.isfinite(number) else _DIVERGED


def _identity_errors(results: Sequence[Result]) -> list[list[float]]:
    """Errors of all layers of all networks of a seed, by seed."""
    errors: dict[int, list[float]] = {}
    for result in results:
        if "identity errors" in result.values:
            errors.setdefault(result.run.seed, []).extend(result.numbers("identity errors"))
    return list(errors.values())


def _best(result: Result) -> float:
    return result.number("best")


def _differences(arms: Mapping[str, Sequence[Result]], what: str) -> list[float]:
    """Without minus with gamma and beta, seed by seed."""
    return [without.number(what) - own.number(what) for own, without in zip(arms["with"], arms["without"], strict=True)]


CLAIM = GammaBeta()
