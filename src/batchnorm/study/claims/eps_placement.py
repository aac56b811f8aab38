"""Where eps stands, and over which axis the mean is taken, decides which layer it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ... import BatchNorm1d, Standardize
from ...report.chart import Curves, Panels, Series
from ..claim import About, Claim, Conclusion, Effect, Report, Result, Run, Topic, Value, Verdict
from ..data import Source, table
from ..statements import joined, rank
from ..statistics import Interval, interval

__all__ = ["CLAIM", "EpsPlacement"]

_PLACES = {"outside": "ε outside the root", "last": "last axis"}
_FAR = 10  # "far earlier" is at a scale this many times as large


def _outside(x: Tensor, eps: float) -> Tensor:
    """(x − mean)/(std + ε) over the batch: the common home-made form."""
    return (x - x.mean(0)) / (x.var(0, unbiased=False).sqrt() + eps)


def _last_axis(x: Tensor, eps: float) -> Tensor:
    """(x − mean)/√(var + ε) over the last axis, a sample's own features: layer norm."""
    return (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, unbiased=False, keepdim=True) + eps)


def _layer(x: Tensor, eps: float) -> Tensor:
    """This library's batch norm in training mode, without gamma and beta."""
    layer = BatchNorm1d(x.shape[1], eps=eps, affine=False, track_running_stats=False)
    output: Tensor = layer(x)
    return output


def _gap(other: Tensor, layer: Tensor) -> float:
    return float((other - layer).norm() / layer.norm())


def _spread(x: Tensor) -> float:
    return float(x.var(0, unbiased=False).mean().sqrt())


def _constant_gradient(eps: float, outside: bool) -> bool:
    """Whether the gradient by a batch with a constant feature is finite."""
    x = torch.tensor([[1.0, 5.0], [2.0, 5.0], [4.0, 5.0]], dtype=torch.float64, requires_grad=True)
    output = _outside(x, eps) if outside else _layer(x, eps)
    (gradient,) = torch.autograd.grad(output[:, 0].square().sum() + output[:, 1].sum(), x)
    return bool(torch.isfinite(gradient).all())


@dataclass(frozen=True)
class EpsPlacement(Claim):
    """Puts the same batches through the layer and through the two forms that are taken for it.

    Args:
        scales: Standard deviations that the standardised features are given; 1 must be one of them.
        batch_size: Rows in the batch.
        eps: The ε of all forms.
        alike: True puts the layer itself in place of both other forms: the effect removed.
        margin: The relative difference from which two layers are different.
        exact: The largest difference between measured and calculated that is rounding.
    """

    scales: tuple[float, ...] = tuple(10.0 ** (exponent / 2) for exponent in range(-12, 7))
    batch_size: int = 64
    eps: float = 1e-5
    alike: bool = False
    margin: float = 0.01
    exact: float = 1e-9

    about: ClassVar[About] = About(
        id="eps-placement",
        topic=Topic.HURTS,
        title="ε outside the root, or the mean over the last axis, is a different layer",
        statement=(
            "Two home-made forms are often taken for batch norm. One adds ε to the standard deviation instead of "
            "to the variance: the same for features of a spread near 1, and another layer for features whose "
            "standard deviation is near √ε or below. The other takes mean and variance over the last axis of "
            "(samples, features), which is layer norm: a different layer at every scale."
        ),
        formula=(
            r"\frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} \;\ne\; \frac{x - \mu}{\sigma + \epsilon}, \qquad "
            r"\frac{\sigma + \epsilon}{\sqrt{\sigma^2 + \epsilon}} \to "
            r"\begin{cases} 1 & \sigma \gg \sqrt{\epsilon} \\ \sqrt{\epsilon} & \sigma \to 0 \end{cases}"
        ),
        symbols=(
            "Here μ and σ are a feature's mean and standard deviation over the batch, and ε is a small number, 10⁻⁵ by "
            "default. The fraction is the ratio of the two forms."
        ),
        calculation=True,
        source=(
            "Batch norm with ε inside the root: Ioffe & Szegedy 2015 (arXiv 1502.03167), Algorithm 1; layer norm: "
            "Ba, Kiros & Hinton 2016 (arXiv 1607.06450)"
        ),
        paper=None,
        setup=(
            "Batches of 64 rows of scikit-learn's breast cancer table (30 measurements), drawn anew per seed, in "
            "float64; ε = 1e-5 everywhere, no γ and β. Once with the features as they were measured, whose "
            "standard deviations go from thousandths to hundreds; once standardised over the batch and multiplied "
            "by 19 scales from 1e-6 to 1000. This library's batch norm, the form with ε outside the root, and the "
            "form over the last axis."
        ),
        metric="relative difference to batch norm's output, in the Euclidean norm over all features",
        direction="above 1% on the features as measured, both forms; below 1% at scale 1 for ε outside the root",
        pass_rule=(
            "Two layers are different where their outputs differ by more than 1%. Reproduced: on the features as "
            "measured the 95% interval of the difference lies above 1% for both forms; at scale 1 the one with ε "
            "outside the root differs by less than 1% and the one over the last axis by more than 1% in every "
            "seed; and at every scale the former's difference is the formula's to 1e-9 of the larger output. Not "
            "reproduced: on the features as measured the interval of one of them lies wholly below 1%. Otherwise "
            "inconclusive."
        ),
        control="Both other forms are batch norm itself.",
        budget=1,
    )

    def without_effect(self) -> EpsPlacement:
        """Both other forms are the layer itself."""
        return replace(self, alike=True)

    def plan(self, seeds: Sequence[int], data: Source | None) -> list[Run]:
        """One run a seed, of all forms."""
        return [Run(self.about.id, "all forms", seed, None) for seed in seeds]

    def execute(self, run: Run, report: Report) -> dict[str, Value]:
        """Gives the differences as measured and at each scale, and the spread of the outputs."""
        features = table("breast_cancer", run.seed).train[0][: self.batch_size].double()
        standard = Standardize(features.shape[1]).fit(features)(features)
        outside, last = (_layer, _layer) if self.alike else (_outside, _last_axis)
        layer = _layer(features, self.eps)
        values: dict[str, Value] = {
            "raw/outside": _gap(outside(features, self.eps), layer),
            "raw/last": _gap(last(features, self.eps), layer),
            "layer finite": _constant_gradient(self.eps, outside=False),
            "outside finite": _constant_gradient(self.eps, outside=not self.alike),
        }
        deviations = features.var(0, unbiased=False).sqrt()
        values["deviations"] = deviations.tolist()
        values["by feature"] = [
            _gap(outside(column, self.eps), _layer(column, self.eps)) for column in features.split(1, dim=1)
        ]
        found: dict[str, list[float]] = {name: [] for name in ("outside", "last", "spread", "spread outside", "error")}
        for place, scale in enumerate(self.scales):
            report(place / len(self.scales), f"scale {scale:g}")
            x = standard * scale
            own, other = _layer(x, self.eps), outside(x, self.eps)
            found["outside"].append(_gap(other, own))
            found["last"].append(_gap(last(x, self.eps), own))
            found["spread"].append(_spread(own))
            found["spread outside"].append(_spread(other))
            wanted = abs(_ratio(scale, self.eps) - 1)
            found["error"].append(abs(found["outside"][-1] - wanted) / (1 + wanted))
        return {**values, **found}

    def conclude(self, results: Sequence[Result]) -> Conclusion:
        """Judges the differences on the features as measured; the scales say where they vanish."""
        raw = {name: interval([run.number(f"raw/{name}") for run in results]) for name in _PLACES}
        one = min(range(len(self.scales)), key=lambda place: abs(math.log(self.scales[place])))
        at_one = {name: [run.numbers(name)[one] for run in results] for name in _PLACES}
        error = max(max(run.numbers("error")) for run in results)
        judged = {name: self._judge(span) for name, span in raw.items()}
        fits = {
            "outside": max(at_one["outside"]) < self.margin,
            "last": min(at_one["last"]) > self.margin,
            "formula": error <= self.exact,
        }
        verdict = joined([*judged.values(), *(_held(fit) for fit in fits.values())])
        near = min(range(len(self.scales)), key=lambda place: abs(math.log(self.scales[place] ** 2 / self.eps)))
        ranked = [
            (
                rank(judged[name]),
                Effect(f"Difference to batch norm, {words}, features as measured", raw[name].scaled(100), "%"),
            )
            for name, words in _PLACES.items()
        ]
        for name, words in _PLACES.items():
            for place in (one, near):
                span = interval([run.numbers(name)[place] for run in results]).scaled(100)
                # At the other scale the difference is shown and not judged.
                own = _held(fits[name]) if place == one else Verdict.REPRODUCED
                label = f"Difference to batch norm, {words}, scale {self.scales[place]:.2g}"
                ranked.append((rank(own), Effect(label, span, "%")))
        misses = interval([max(run.numbers("error")) for run in results])
        ranked.append(
            (rank(_held(fits["formula"])), Effect("Largest error of the formula for ε outside the root", misses))
        )
        # The effect that decided comes first; of effects that decide alike the order stays.
        effects = [effect for _, effect in sorted(ranked, key=lambda pair: pair[0])]
        return Conclusion(
            verdict,
            f"On the features as measured the form with ε outside the root differs from batch norm by "
            f"{100 * raw['outside'].estimate:.3g}%, the form over the last axis by {100 * raw['last'].estimate:.3g}%. "
            f"At scale 1 they differ by {100 * float(np.mean(at_one['outside'])):.2g}% and "
            f"{100 * float(np.mean(at_one['last'])):.3g}%.",
            effects,
            [self._spread_chart(results), self._difference_chart(results)],
            self._findings(results, error),
        )

    def _judge(self, span: Interval) -> Verdict:
        """Whether a form differs on the features as measured."""
        if span.high < self.margin:
            return Verdict.NOT_REPRODUCED
        return Verdict.REPRODUCED if span.low > self.margin else Verdict.INCONCLUSIVE

    def _findings(self, results: Sequence[Result], error: float) -> list[str]:
        deviations = np.array([run.numbers("deviations") for run in results])
        gaps = np.array([run.numbers("by feature") for run in results])
        changed = (gaps > self.margin).sum(1)
        vanishes = [
            scale
            for place, scale in enumerate(self.scales)
            if all(run.numbers("outside")[place] < self.margin for run in results)
        ]
        sentences = [
            f"Of the {gaps.shape[1]} features as measured, {changed.min()} to {changed.max()}, by seed, come out more "
            f"than {100 * self.margin:g}% different with ε outside the root; the feature of the smallest standard "
            f"deviation, {float(deviations.min(1).mean()):.2g}, by {100 * float(gaps.max(1).mean()):.3g}%.",
            f"The formula for ε outside the root, |√(σ² + ε)/(σ + ε) − 1|, misses the measured difference by at most "
            f"{error:.1g}, relative to the larger output. No other ε mends it: with ε′ added to σ the two agree only "
            "where ε′ = √(σ² + ε) − σ, which no two scales share.",
        ]
        if vanishes:
            sentences.append(
                f"ε outside the root makes less than {100 * self.margin:g}% of difference at {len(vanishes)} of the "
                f"{len(self.scales)} scales, from {min(vanishes):.2g} to {max(vanishes):.2g}."
            )
        if all(run.values["layer finite"] for run in results) and not any(
            run.values["outside finite"] for run in results
        ):
            sentences.append(
                "A constant feature: batch norm's gradient is finite; that of (x − μ)/(√σ² + ε), written so in torch, "
                "is not a number, because the root has no derivative at 0."
            )
        return sentences

    def _spread_chart(self, results: Sequence[Result]) -> Curves:
        scales = list(self.scales)
        lines = []
        for label, name, color in (("inside the root", "spread", 1), ("outside", "spread outside", 2)):
            lines.append(Series(label, scales, _mean(results, name), color, markers=True))
        # Where the output's spread comes below a half: ε in the root does that at a far larger scale, or not.
        held = [
            max(
                (scale for scale, spread in zip(scales, _mean(results, name), strict=True) if spread < 0.5), default=0.0
            )
            for name in ("spread", "spread outside")
        ]
        apart = held[0] >= _FAR * held[1] and held[0] > 0
        return Curves(
            "Small features: ε in the root holds them down far earlier than ε outside it"
            if apart
            else "The spread of the output by the spread of the input",
            "standard deviation of the input",
            "standard deviation of the output",
            lines,
            log_x=True,
            log_y=True,
            note="Both forms give 1 to features of a large spread. Mean over seeds.",
        )

    def _difference_chart(self, results: Sequence[Result]) -> Panels:
        scales = list(self.scales)
        line = Series("1%", (scales[0], scales[-1]), [100 * self.margin] * 2, 0, dash="dot")
        floor = 1e-4  # in per cent; below it a difference is drawn at the edge
        measured = [max(floor, 100 * value) for value in _mean(results, "outside")]
        formula = [max(floor, 100 * abs(_ratio(scale, self.eps) - 1)) for scale in scales]
        deviations = np.array([run.numbers("deviations") for run in results]).mean(0)
        gaps = np.array([run.numbers("by feature") for run in results]).mean(0)
        order = np.argsort(deviations)
        real = np.maximum(floor, 100 * gaps[order]).tolist()
        x_label, y_label = "standard deviation of the input", "relative difference to batch norm (%)"
        outside = Curves(
            "ε outside the root",
            x_label,
            y_label,
            [
                Series("formula", scales, formula, 0, dash="dash"),
                Series("scaled", scales, measured, 2, markers=True, line=False),
                Series("as measured", deviations[order].tolist(), real, 5, markers=True, line=False),
                line,
            ],
            log_x=True,
            log_y=True,
        )
        last = Curves(
            "Mean and variance over the last axis",
            x_label,
            y_label,
            [
                Series("last axis", scales, [max(floor, 100 * v) for v in _mean(results, "last")], 4, markers=True),
                line,
            ],
            log_x=True,
            log_y=True,
            y_range=(0.1, 1000),
        )
        different = min(_mean(results, "last")) > self.margin
        return Panels(
            "ε outside the root matters for small features, the wrong axis for all"
            if different and measured[0] > 100 * self.margin > measured[-1]
            else "The difference to batch norm by the scale of the features",
            [outside, last],
            note="Mean over seeds; “as measured” are the table's 30 features, one by one. Differences below 0.0001% "
            "are drawn at the lower edge.",
        )


def _ratio(deviation: float, eps: float) -> float:
    """Output with ε outside the root over output with ε inside it."""
    return math.sqrt(deviation**2 + eps) / (deviation + eps)


def _held(fits: bool) -> Verdict:
    """What a part of the rule says that can leave the claim open and cannot refute it."""
    return Verdict.REPRODUCED if fits else Verdict.INCONCLUSIVE


def _mean(results: Sequence[Result], name: str) -> list[float]:
    means: list[float] = np.mean([run.numbers(name) for run in results], axis=0).tolist()
    return means


CLAIM = EpsPlacement()
