"""At initialisation, gradients of a deep batch-norm network grow by a constant factor a layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ... import BatchNorm1d
from ...report.chart import Curves, Series
from ..claim import About, Claim, Conclusion, Effect, Report, Result, Run, Topic, Value, Verdict, by_arm
from ..data import Source
from ..statements import joined, rank
from ..statistics import Interval, interval, paired

__all__ = ["CLAIM", "GradientExplosion", "predicted_growth"]

_LIMIT = math.sqrt(math.pi / (math.pi - 1))


def _above(excess: Interval) -> Verdict:
    """Whether a difference to the control lies above 0."""
    if excess.high < 0:
        return Verdict.NOT_REPRODUCED
    return Verdict.REPRODUCED if excess.low > 0 else Verdict.INCONCLUSIVE


def predicted_growth(batch_size: float) -> float:
    """Growth of the gradient's norm a layer that Yang et al. prove for ReLU and infinite width.

    With J(c) = (√(1 − c²) + (π − arccos c)·c)/π, the correlation of two ReLU features of correlation c, and
    c = −1/(B − 1), the correlation of two values of a standardised batch:
    growth² = ((B − 1 + J′(c))/(1 − J(c)) − 1)/(B − 3), which tends to π/(π − 1) for large B.
    """
    if math.isinf(batch_size):
        return _LIMIT
    c = -1 / (batch_size - 1)
    angle = math.pi - math.acos(c)
    kernel, slope = (math.sqrt(1 - c * c) + angle * c) / math.pi, angle / math.pi
    return math.sqrt(((batch_size - 1 + slope) / (1 - kernel) - 1) / (batch_size - 3))


@dataclass(frozen=True)
class GradientExplosion(Claim):
    """Measures the growth on random networks, without training.

    Args:
        width: Units a layer. The theorem is about infinite width.
        depth: Layers.
        fit: First and last layer of the fit, away from both ends.
        batch_sizes: B of the arms with batch norm.
        decisive: Those of them that the verdict looks at.
        control_batch: B of the arm without batch norm.
        norm: False builds every arm without batch norm: the effect removed.
        tolerance: How far the fitted growth may be from the predicted one, as a share of it.
    """

    width: int = 1000
    depth: int = 50
    fit: tuple[int, int] = (5, 45)
    batch_sizes: tuple[int, ...] = (8, 16, 32, 64, 128)
    decisive: tuple[int, ...] = (32, 64, 128)
    control_batch: int = 128
    norm: bool = True
    tolerance: float = 0.01

    about: ClassVar[About] = About(
        id="gradient-explosion",
        topic=Topic.HURTS,
        title="Batch norm makes gradients explode with depth at initialisation",
        statement=(
            "In a deep, plain, randomly initialised ReLU network with batch norm the gradient grows by a "
            "constant factor with every layer that it passes on its way back. (That the scale of the weights plays no "
            "part in it is measured in saturation.)"
        ),
        formula=(
            r"\left\lVert \frac{\partial \mathcal{L}}{\partial z^{(\ell)}} \right\rVert \propto g^{\,L - \ell}, \qquad "
            r"g \to \sqrt{\frac{\pi}{\pi - 1}} \approx 1.211 \text{ for a large batch}"
        ),
        symbols="Here z(ℓ) are the linear outputs of layer ℓ of L layers, ℒ is the loss, and g the factor a layer.",
        calculation=True,
        source="Yang et al. 2019, A Mean Field Theory of Batch Normalization (arXiv 1902.08129), Theorems 7–9",
        paper=(
            "The theorem's numbers, for infinite width: 1.211 at infinite batch size, 1.234 at B = 32, 1.222 at "
            "64, 1.216 at 128. They are exact for infinite width; ours are measured at width 1000, so a small "
            "difference is expected."
        ),
        setup=(
            "Fully connected layers of 1000 units, 50 of them, linear → batch norm → ReLU, random Gaussian "
            "weights and input, float64, no training. The norm of the gradient with respect to each layer's "
            "linear output; a straight line through its logarithm over layers 5 to 45. A control without batch "
            "norm (He's initialisation, B = 128)."
        ),
        metric="growth of the gradient's norm a layer, from the fitted line",
        direction="equal to the theorem's number, and above the control without batch norm",
        pass_rule=(
            "Reproduced: at B = 32, 64 and 128 the 95% interval over seeds lies within 1% of the predicted "
            "growth, and the paired difference to the control lies above 0. Not reproduced: at one of these B "
            "the interval lies wholly outside that 1%, or the difference to the control lies wholly below 0. "
            "Otherwise inconclusive."
        ),
        control="The arms named batch norm are built without it.",
        budget=30,
    )

    def without_effect(self) -> GradientExplosion:
        """No arm has batch norm."""
        return replace(self, norm=False)

    def _arms(self) -> dict[str, tuple[int, bool]]:
        arms = {f"batch norm, B = {batch}": (batch, self.norm) for batch in self.batch_sizes}
        return arms | {"without batch norm": (self.control_batch, False)}

    def plan(self, seeds: Sequence[int], data: Source | None) -> list[Run]:
        """One run an arm and seed."""
        return [Run(self.about.id, arm, seed, None) for seed in seeds for arm in self._arms()]

    def execute(self, run: Run, report: Report) -> dict[str, Value]:
        """Builds one random network and gives the logarithm of the gradient's norm at every layer."""
        batch, norm = self._arms()[run.arm]
        # The seed alone decides the weights: arms of one seed share them, which is what makes them paired.
        weights = torch.Generator().manual_seed(run.seed)
        ends = torch.Generator().manual_seed(1_000_003 + run.seed)
        hidden = torch.randn(batch, self.width, generator=ends, dtype=torch.float64)
        direction = torch.randn(batch, self.width, generator=ends, dtype=torch.float64)
        outputs: list[Tensor] = []
        for layer in range(self.depth):
            # Drawn in float32, which halves the time; the arithmetic is float64.
            weight = torch.randn(self.width, self.width, generator=weights).double()
            linear = hidden @ (weight * math.sqrt(2 / self.width)).T
            outputs.append(linear.requires_grad_())
            # The theorem has no eps; this one is far too small to be seen beside variances of about 1.
            layer_norm = BatchNorm1d(self.width, eps=1e-14, affine=False, track_running_stats=False)
            hidden = torch.relu(layer_norm(linear) if norm else linear)
            report(0.7 * (layer + 1) / self.depth, f"layer {layer + 1}/{self.depth}")
        gradients = torch.autograd.grad((hidden * direction).sum(), outputs)
        logs = [math.log(float(gradient.norm())) for gradient in gradients]
        first, last = self.fit
        layers = np.arange(first, last + 1)
        slope = np.polyfit(layers, np.array(logs)[first - 1 : last], 1)[0]
        # Backwards is towards layer 1: growth is minus the slope over the layer's number.
        return {"log_norms": logs, "log_growth": -float(slope)}

    def conclude(self, results: Sequence[Result]) -> Conclusion:
        """Compares the fitted growth with the theorem's, in logarithms, as an equivalence test."""
        arms = by_arm(results)
        control = [result.number("log_growth") for result in arms["without batch norm"].values()]
        growth: dict[int, Interval] = {}
        excess: dict[int, Interval] = {}
        for batch in self.batch_sizes:
            own = [result.number("log_growth") for result in arms[f"batch norm, B = {batch}"].values()]
            growth[batch], excess[batch] = interval(own), paired(own, control)
        fits = {batch: self._fits(batch, span) for batch, span in growth.items()}
        above = {batch: _above(span) for batch, span in excess.items()}
        verdict = joined([judged[batch] for judged in (fits, above) for batch in self.decisive])
        # The effect that decided comes first; of effects that decide alike the larger batch, then the control.
        decisive = sorted(self.decisive, reverse=True)
        ranked = [(rank(fits[batch]), self._growth(batch, growth[batch])) for batch in decisive]
        ranked += [
            (
                rank(above[batch]),
                Effect(
                    f"Growth of the gradient a layer at B = {batch} over that without batch norm",
                    excess[batch].exponential(),
                    "×",
                    ratio=True,
                ),
            )
            for batch in decisive
        ]
        effects = [effect for _, effect in sorted(ranked, key=lambda pair: pair[0])]
        others = sorted(set(self.batch_sizes) - set(self.decisive), reverse=True)
        effects += [self._growth(batch, growth[batch], "not part of the verdict") for batch in others]
        effects.append(
            Effect("Growth of the gradient a layer without batch norm", interval(control).exponential(), ratio=True)
        )
        found = ", ".join(
            f"{math.exp(growth[batch].estimate):.3f} at B = {batch} (theorem {predicted_growth(batch):.3f})"
            for batch in self.decisive
        )
        return Conclusion(
            verdict,
            f"Growth a layer: {found}; without batch norm {math.exp(interval(control).estimate):.3f}.",
            effects,
            [self._growth_chart(growth, interval(control)), self._layers_chart(arms)],
            [self._residue(growth)],
        )

    def _fits(self, batch: int, growth: Interval) -> Verdict:
        """Whether a growth, in logarithms, is the theorem's to the tolerance."""
        right = math.log(predicted_growth(batch))
        low, high = right + math.log1p(-self.tolerance), right + math.log1p(self.tolerance)
        if growth.low > high or growth.high < low:
            return Verdict.NOT_REPRODUCED
        return Verdict.REPRODUCED if growth.low >= low and growth.high <= high else Verdict.INCONCLUSIVE

    def _growth(self, batch: int, growth: Interval, note: str = "") -> Effect:
        name = f"Growth of the gradient a layer at B = {batch} (theorem: {predicted_growth(batch):.3f})"
        return Effect(name, growth.exponential(), note=note, ratio=True)

    def _residue(self, growth: dict[int, Interval]) -> str:
        """Says where the theorem's exact number is outside the interval, though within the tolerance."""
        off = [
            f"B = {batch} ({100 * (math.exp(growth[batch].estimate) / predicted_growth(batch) - 1):+.2f}%)"
            for batch in self.batch_sizes
            if not growth[batch].low <= math.log(predicted_growth(batch)) <= growth[batch].high
        ]
        if not off:
            return "The theorem's number is inside the interval at every batch size."
        return (
            f"The theorem's exact number, for infinite width, is outside the interval at {', '.join(off)}: the rule "
            f"counts what lies within {100 * self.tolerance:g}% as agreement."
        ).replace("(-", "(−")

    def _growth_chart(self, growth: dict[int, Interval], control: Interval) -> Curves:
        sizes = [float(batch) for batch in self.batch_sizes]
        ratios = [growth[batch].exponential() for batch in self.batch_sizes]
        fine = np.geomspace(min(sizes), max(sizes), 60).tolist()
        plain = control.exponential()
        return Curves(
            "The measured growth follows the theorem at every batch size"
            if all(self._fits(batch, span) is Verdict.REPRODUCED for batch, span in growth.items())
            else "The measured growth and the theorem's",
            "batch size B (samples)",
            "growth of the gradient's norm (factor a layer)",
            [
                Series("theorem", fine, [predicted_growth(batch) for batch in fine], 0, dash="dash"),
                Series(
                    "measured",
                    sizes,
                    [ratio.estimate for ratio in ratios],
                    1,
                    [ratio.low for ratio in ratios],
                    [ratio.high for ratio in ratios],
                    markers=True,
                ),
                Series(
                    "no batch norm",
                    [sizes[0], sizes[-1]],
                    [plain.estimate] * 2,
                    2,
                    [plain.low] * 2,
                    [plain.high] * 2,
                    dash="dot",
                ),
            ],
            log_x=True,
            x_ticks=sizes,
            note=f"Bands are 95% intervals over seeds; what lies within {100 * self.tolerance:g}% of the theorem's "
            "number follows it.",
        )

    def _layers_chart(self, arms: dict[str, dict[int, Result]]) -> Curves:
        layers = [float(layer) for layer in range(self.depth)]
        shown = {
            f"batch norm, B = {self.batch_sizes[0]}": 3,
            f"batch norm, B = {self.batch_sizes[-1]}": 1,
            "without batch norm": 2,
        }
        lines = []
        for arm, color in shown.items():
            logs = np.array([result.numbers("log_norms") for result in arms[arm].values()])
            # Relative to the last layer, and in the order in which the gradient passes the layers.
            relative = np.exp(logs.mean(axis=0) - logs[:, -1].mean())[::-1]
            lines.append(Series(arm, layers, relative.tolist(), color))
        return Curves(
            "The gradient on its way back through the network",
            "layers passed on the way back",
            "gradient's norm (1 at the last layer)",
            lines,
            log_y=True,
            note="Geometric mean over seeds.",
        )


CLAIM = GradientExplosion()
