"""Gradients at initialisation: saturating activations, bad weight scales, and what batch norm makes of both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import ClassVar

import numpy as np
from torch import nn

from ...report.chart import Curves, Panels, Series
from ..apparatus.gradients import log_norms, lost, wide_factor
from ..claim import About, Claim, Conclusion, Effect, Report, Result, Run, Topic, Value, Verdict, by_arm
from ..data import Source, split
from ..networks import fully_connected
from ..statements import Case, joined, rank
from ..statistics import interval

__all__ = ["CLAIM", "Saturation"]

_ACTIVATIONS = ("sigmoid", "tanh", "relu")
_WRITTEN = {"sigmoid": "sigmoid", "tanh": "tanh", "relu": "ReLU"}
_WITH, _WITHOUT = "batch norm", "no batch norm"
_SHOWN = (0.05, 5.0)  # factors a layer that one scale of all three pictures shows


@dataclass(frozen=True)
class Saturation(Claim):
    """Builds random networks and measures the gradient at every layer, without training.

    Args:
        depth: Hidden layers of the networks that decide.
        depths: Shallower ones, for the picture.
        scales: Factors on the usual initial weights; the first and the last are the bad ones, 1 is the usual one.
        width: Units a layer.
        batch_size: Images.
        norm: False builds every arm without batch norm: the effect removed.
        changed: The factor over all layers from which a gradient has exploded, and 1 over it vanished.
    """

    depth: int = 50
    depths: tuple[int, ...] = (5, 10, 20)
    scales: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)
    width: int = 100
    batch_size: int = 128
    norm: bool = True
    changed: float = 2.0

    about: ClassVar[About] = About(
        id="saturation",
        topic=Topic.DOES,
        title="Batch norm moderates vanishing and exploding gradients, but too deep a sigmoid net still vanishes",
        statement=(
            "Sigmoid and tanh are flat where their input is large, so in a deep net of them the gradient vanishes "
            "on its way back; badly scaled initial weights make it vanish or explode. Batch norm moderates both. "
            "It does not cure all: too deep a sigmoid net still vanishes. These are five statements, and each is "
            "judged."
        ),
        formula=(
            r"\left\lVert \frac{\partial \mathcal{L}}{\partial z^{(2)}} \right\rVert = g^{\,L - 2} \left\lVert "
            r"\frac{\partial \mathcal{L}}{\partial z^{(L)}} \right\rVert, \qquad \text{vanishing: } g^{\,L-2} < "
            r"\tfrac12, \qquad \text{exploding: } g^{\,L-2} > 2"
        ),
        symbols=(
            "Here z(ℓ) are the linear outputs of hidden layer ℓ of L = 50, ℒ is the loss, and g the gradient's factor "
            "a layer."
        ),
        source=(
            "Ioffe & Szegedy 2015 (arXiv 1502.03167), sections 1 and 3.3, on saturation and on gradients; the last "
            "statement is common in tutorials"
        ),
        paper=None,
        setup=(
            "Random fully connected networks of 100 units a layer, 128 images, cross-entropy, float64, no training: "
            "50 hidden layers of sigmoid, tanh or ReLU, without batch norm and with it before the activation. "
            "Weights of Glorot's initialisation for sigmoid and tanh and He's for ReLU, times 0.25, 0.5, 1, 2 or 4; "
            "biases 0. For the picture also 5, 10 and 20 layers. Both arms have the same weights and images. The "
            "way is counted from the last hidden layer back to the second: the first sees images, not units. A pilot "
            "on other seeds (100, 101) showed that statements 3 and 5 would hardly hold; they stay as they are told."
        ),
        metric="factor by which the gradient's norm at the linear outputs changes over the 48 layers from 50 to 2",
        direction="as the five statements say",
        pass_rule=(
            "By 95% intervals of the factor's logarithm over seeds. Statements: (1) plain sigmoid and tanh nets of "
            "the usual weights: below 1/2. (2) Plain tanh and ReLU nets: below 1/2 with weights ×0.25, above 2 with "
            "×4. (3) Sigmoid and tanh nets of the usual weights: with batch norm the factor is nearer to 1 than "
            "without, paired by seed: the distance of the logarithm from 0 is smaller. (4) The same for tanh and "
            "ReLU nets at ×0.25 and ×4. (5) The sigmoid net with batch norm: still below 1/2. A statement holds if "
            "the intervals of all its cases lie on the stated side, and is refuted if one lies wholly on the other. "
            "Reproduced: all five hold. Not reproduced: one is refuted. Otherwise inconclusive; so too if in some "
            "network a gradient is not a number or has vanished before the way begins."
        ),
        control="The arms named batch norm are built without it.",
        budget=6,
        smallest=128,
    )

    def without_effect(self) -> Saturation:
        """No arm has batch norm."""
        return replace(self, norm=False)

    def plan(self, seeds: Sequence[int], data: Source | None) -> list[Run]:
        """One run an activation, norm and seed."""
        arms = [f"{activation}, {norm}" for activation in _ACTIVATIONS for norm in (_WITH, _WITHOUT)]
        return [Run(self.about.id, arm, seed, data) for seed in seeds for arm in arms]

    def execute(self, run: Run, report: Report) -> dict[str, Value]:
        """Gives the logarithms of the gradient's norms by layer, at each scale and at each depth."""
        activation, norm = run.arm.split(", ")
        parts = split(run.source, run.seed)
        images, labels = parts.train[0][: self.batch_size].double(), parts.train[1][: self.batch_size]
        values: dict[str, Value] = {}
        networks = [(f"scale {scale:g}", self.depth, scale) for scale in self.scales]
        networks += [(f"depth {depth}", depth, 1.0) for depth in self.depths]
        for place, (name, depth, scale) in enumerate(networks):
            report(place / len(networks), f"{depth} layers, weights ×{scale:g}")
            model = fully_connected(
                (images[0].numel(), *[self.width] * depth, parts.classes),
                activation=activation,
                norm="before" if self.norm and norm == _WITH else "none",
                seed=run.seed,
            ).double()
            hidden = [module for module in model if isinstance(module, nn.Linear)][:-1]
            for linear in hidden:
                linear.weight.data *= scale
            values[name] = log_norms(model, images, labels)
        return values

    def conclude(self, results: Sequence[Result]) -> Conclusion:
        """Judges the five statements."""
        networks = [value for result in results for value in result.values.values() if isinstance(value, list)]
        nothing = sum(lost(logs) for logs in networks)
        if nothing:
            reason = (
                f"In {nothing} of {len(networks)} networks a gradient is not a number, or has vanished at the last "
                "hidden layer already: how it changes from there on cannot be measured."
            )
            return Conclusion(Verdict.INCONCLUSIVE, reason, [])
        statements = self._statements(results)
        verdicts = {name: joined([case.verdict for case in cases]) for name, cases in statements.items()}
        cases = sorted(chain(*statements.values()), key=lambda case: rank(case.verdict))
        words = {Verdict.REPRODUCED: "holds", Verdict.NOT_REPRODUCED: "refuted", Verdict.INCONCLUSIVE: "open"}
        judged = "; ".join(f"{name}: {words[verdict]}" for name, verdict in verdicts.items())
        arms = by_arm(results)
        return Conclusion(
            joined(list(verdicts.values())),
            f"{judged}.",
            [self._effect(case, words[case.verdict]) for case in cases],
            [self._layers_chart(arms), self._scales_chart(arms), self._depths_chart(arms)],
            self._findings(arms),
            short=(
                f"{list(verdicts.values()).count(Verdict.REPRODUCED)} of {len(verdicts)} statements hold",
                "; ".join(
                    f"{words[verdict]}: {name}" for name, verdict in verdicts.items() if words[verdict] != "holds"
                )
                or "all of them",
            ),
        )

    def _statements(self, results: Sequence[Result]) -> dict[str, list[Case]]:
        arms = by_arm(results)
        limit = math.log(self.changed)
        low, high = self.scales[0], self.scales[-1]

        def total(activation: str, norm: str, scale: float) -> list[float]:
            runs = arms[f"{activation}, {norm}"].values()
            return [_total(run.numbers(f"scale {scale:g}")) for run in runs]

        def plain(activation: str, scale: float, above: bool, norm: str = _WITHOUT) -> Case:
            name = f"{_WRITTEN[activation]}, {norm}, weights ×{scale:g}"
            return Case(name, total(activation, norm, scale), limit if above else -limit, above, True)

        def nearer(activation: str, scale: float) -> Case:
            own, other = ([abs(value) for value in total(activation, norm, scale)] for norm in (_WITH, _WITHOUT))
            apart = [before - after for before, after in zip(other, own, strict=True)]
            return Case(f"{_WRITTEN[activation]}, weights ×{scale:g}", apart, 0.0, True, False)

        return {
            "(1) plain sigmoid and tanh nets vanish": [plain(name, 1.0, False) for name in ("sigmoid", "tanh")],
            "(2) bad weights make plain nets vanish or explode": [
                plain(name, scale, scale > 1) for name in ("tanh", "relu") for scale in (low, high)
            ],
            "(3) batch norm moderates it in sigmoid and tanh nets": [nearer(name, 1.0) for name in ("sigmoid", "tanh")],
            "(4) batch norm moderates bad weights": [
                nearer(name, scale) for name in ("tanh", "relu") for scale in (low, high)
            ],
            f"(5) a sigmoid net of {self.depth} layers still vanishes with it": [plain("sigmoid", 1.0, False, _WITH)],
        }

    def _effect(self, case: Case, word: str) -> Effect:
        factor = f"factor over {self.depth - 2} layers"
        if case.factor:
            return Effect(f"Gradient's {factor}: {case.name}", case.interval.exponential(), "×", word, True)
        name = f"How much nearer to 1 batch norm brings the gradient's {factor} (logarithm): {case.name}"
        return Effect(name, case.interval, note=word)

    def _findings(self, arms: dict[str, dict[int, Result]]) -> list[str]:
        wide = ", ".join(
            f"{_WRITTEN[name]} {self._factor(arms, name, _WITH, 1.0):.3f} ({wide_factor(name):.3f})"
            for name in _ACTIVATIONS
        )
        spans = {
            norm: [math.exp(min(change, 700.0)) for change in self._changes(arms, norm)] for norm in (_WITH, _WITHOUT)
        }
        least = min(self._factor(arms, name, _WITH, 1.0) for name in _ACTIVATIONS)
        return [
            (
                "Why batch norm before the activation does not let a gradient vanish: in"
                if least >= 1
                else "What theory says of batch norm before the activation: in"
            )
            + " wide layers and large batches the "
            "factor a layer is √(E[φ′(x)²]/Var[φ(x)]) with standard normal x, and the Gaussian Poincaré inequality, "
            "Var[φ] ≤ E[φ′²], keeps it from being below 1 for any activation φ. It is near 1 where φ is nearly a "
            f"straight line, as sigmoid is over a standard normal. Measured here, and that limit: {wide}.",
            *["What is left with batch norm is growth with depth, as gradient-explosion measures it for ReLU."]
            * (least > 1),
            f"Over the weights' scales the gradient's factor over all {self.depth - 2} layers is "
            f"{min(spans[_WITH]):.3g} to {max(spans[_WITH]):.3g} times that of the usual weights with batch norm, and "
            f"{min(spans[_WITHOUT]):.3g} to {max(spans[_WITHOUT]):.3g} times without.",
            "This is about initial weights. Training moves them, γ and β too, and a later gradient is another matter.",
        ]

    def _changes(self, arms: dict[str, dict[int, Result]], norm: str) -> list[float]:
        """Logarithms of the factors over all layers, each scale's against that of the usual weights."""
        return [
            (self.depth - 2) * math.log(self._factor(arms, name, norm, scale) / self._factor(arms, name, norm, 1.0))
            for name in _ACTIVATIONS
            for scale in self.scales
        ]

    def _factor(self, arms: dict[str, dict[int, Result]], activation: str, norm: str, scale: float) -> float:
        runs = arms[f"{activation}, {norm}"].values()
        return math.exp(float(np.mean([_total(run.numbers(f"scale {scale:g}")) for run in runs])) / (self.depth - 2))

    def _layers_chart(self, arms: dict[str, dict[int, Result]]) -> Panels:
        layers = [float(layer) for layer in range(1, self.depth + 1)]
        charts = []
        for name in _ACTIVATIONS:
            lines = []
            for norm, color in ((_WITHOUT, 0), (_WITH, 1)):
                logs = np.array([run.numbers("scale 1") for run in arms[f"{name}, {norm}"].values()])
                relative = np.exp((logs - logs[:, -1:]).mean(0))
                lines.append(Series(norm, layers, relative.tolist(), color))
            y = "gradient's norm (1 at the last layer)"
            charts.append(Curves(_titled(name), "layer", y, lines, log_y=True))
        return Panels(
            f"The gradient by layer in nets of {self.depth} layers, usual initial weights",
            charts,
            note="The gradient runs from right to left. Geometric mean over seeds; the scales of the pictures differ.",
        )

    def _scales_chart(self, arms: dict[str, dict[int, Result]]) -> Panels:
        charts = []
        for name in _ACTIVATIONS:
            lines = [
                Series(norm, self.scales, [self._factor(arms, name, norm, s) for s in self.scales], color, markers=True)
                for norm, color in ((_WITHOUT, 0), (_WITH, 1))
            ]
            charts.append(
                Curves(
                    _titled(name),
                    "factor on the usual initial weights",
                    "gradient's factor a layer",
                    lines,
                    log_x=True,
                    log_y=True,
                    y_range=_SHOWN if all(_SHOWN[0] < y < _SHOWN[1] for line in lines for y in line.y) else None,
                    x_ticks=self.scales,
                )
            )
        # Over the whole network: a layer's factor that looks steady may come to much over many layers.
        steady = max(map(abs, self._changes(arms, _WITH))) < math.log(self.changed)
        return Panels(
            "With batch norm the weights' scale does not matter"
            if steady
            else "The factor a layer by the scale of the initial weights",
            charts,
            note=f"{self.depth} layers; geometric mean over seeds."
            + f" “Does not matter”: less than a factor of {self.changed:g} over all of them." * steady,
        )

    def _depths_chart(self, arms: dict[str, dict[int, Result]]) -> Curves:
        depths = [float(depth) for depth in (*self.depths, self.depth)]
        names = [*(f"depth {depth}" for depth in self.depths), "scale 1"]
        lines = []
        for activation, norm, label, color, dash in (
            ("sigmoid", _WITHOUT, "sigmoid, plain", 2, "dash"),
            ("tanh", _WITHOUT, "tanh, plain", 5, "dash"),
            ("sigmoid", _WITH, "sigmoid, norm", 1, "solid"),
            ("tanh", _WITH, "tanh, norm", 3, "solid"),
            ("relu", _WITH, "ReLU, norm", 4, "solid"),
        ):
            runs = arms[f"{activation}, {norm}"].values()
            spans = [interval([_total(run.numbers(name)) for run in runs]).exponential() for name in names]
            lines.append(Series(label, depths, [span.estimate for span in spans], color, dash=dash, markers=True))
        return Curves(
            "What is left of the gradient at the second layer, by depth",
            "hidden layers",
            "gradient's norm at layer 2 (1 at the last layer)",
            lines,
            log_y=True,
            x_ticks=depths,
            note="Usual initial weights; geometric mean over seeds. “norm” is batch norm.",
        )


def _titled(activation: str) -> str:
    written = _WRITTEN[activation]
    return written[0].upper() + written[1:]


def _total(logs: Sequence[float]) -> float:
    """Logarithm of the factor from the last layer to the second."""
    return logs[1] - logs[-1]


CLAIM = Saturation()
