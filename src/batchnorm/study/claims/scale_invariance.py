"""Batch norm takes the scale of the weights before it out of the forward pass, and puts it into their gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ... import BatchNorm1d
from ...report.chart import Curves, Series
from ..claim import About, Claim, Conclusion, Effect, Report, Result, Run, Topic, Value, Verdict, by_arm
from ..data import Source, split
from ..networks import fully_connected
from ..statistics import interval

__all__ = ["CLAIM", "ScaleInvariance"]

_NEGLIGIBLE, _DEFAULT, _FOLLOWING, _PLAIN = "negligible eps", "default eps", "eps times a²", "no batch norm"
_STATEMENTS = {"output": "the output", "weight": "a times the weights' gradient", "input": "the input's gradient"}
_EPS = {_NEGLIGIBLE: 1e-300, _DEFAULT: 1e-5, _FOLLOWING: 1e-5}
_NOT_FINITE = 1e30  # what a deviation counts as that is no number
_ROUNDING = 2.0**-52  # the spacing of float64 at 1


@dataclass(frozen=True)
class _Pass:
    """One forward and backward pass: a layer's output, and the loss' gradients by its weights and its input.

    ``left`` is the size of the weights' gradient over what it would be if its terms, one an image, had one sign.
    """

    output: Tensor
    weight: Tensor
    input: Tensor
    left: float


def _linears(model: nn.Sequential) -> list[int]:
    """Places of the hidden linear layers."""
    places = [place for place, module in enumerate(model) if isinstance(module, nn.Linear)]
    return places[:-1]


def _pass(model: nn.Sequential, images: Tensor, labels: Tensor, place: int, eps: float) -> _Pass:
    """Runs the batch, with this eps in the norm behind the linear layer at that place."""
    before, linear, follows = nn.Sequential(*list(model)[:place]), model[place], model[place + 1]
    assert isinstance(linear, nn.Linear)
    with torch.no_grad():
        hidden = before(images)
    hidden.requires_grad_()
    output = product = linear(hidden)
    rest = place + 1
    if isinstance(follows, BatchNorm1d):
        kept, follows.eps = follows.eps, eps
        output, rest = follows(output), place + 2
        follows.eps = kept
    loss = nn.functional.cross_entropy(nn.Sequential(*list(model)[rest:])(output), labels)
    weight, of_input, of_product = torch.autograd.grad(loss, [linear.weight, hidden, product])
    terms = of_product.abs().T @ hidden.detach().flatten(1).abs()
    return _Pass(output.detach(), weight, of_input, float((weight.norm() / terms.norm()).nan_to_num(nan=0.0)))


def _off(value: Tensor, wanted: Tensor) -> float:
    if torch.equal(value, wanted):
        return 0.0  # also where both are 0, which has no relative deviation
    return _finite(float((value - wanted).norm() / wanted.norm()))


def _finite(value: float) -> float:
    """A number that survives JSON and comparisons: NaN would lose each of them, and so count as agreement."""
    return value if math.isfinite(value) else _NOT_FINITE


def _predicted(variances: Tensor, eps: float, factor: float) -> float:
    """‖BN(aWu) − BN(Wu)‖/‖BN(Wu)‖ from the variances of Wu: each channel changes by √((v + ε)/(v + ε/a²))."""
    change = torch.sqrt((variances + eps) / (variances + eps / factor**2)) - 1
    energy = variances / (variances + eps)
    if not float(energy.sum()):
        return 0.0  # no channel varies: the output is 0 whatever the weights
    return _finite(float(torch.sqrt((change.square() * energy).sum() / energy.sum())))


def _least_spread(hidden: Tensor) -> float:
    """Smallest standard deviation of a unit over the batch, relative to the unit's root mean square."""
    shares = hidden.var(0, unbiased=False).sqrt() / hidden.square().mean(0).sqrt()
    return float(shares.nan_to_num(nan=0.0, posinf=0.0).min())


@dataclass(frozen=True)
class ScaleInvariance(Claim):
    """Multiplies the weights of one layer at a time by a and looks at what changes.

    Args:
        exponents: The factors a are 10 to these powers; none is a power of 2, with which rounding would vanish.
        hidden: Units of the hidden layers.
        batch_size: Images in the batch.
        norm: False builds every arm without batch norm: the effect removed.
        exact: The largest relative deviation that is rounding.
        broken: The relative deviation from which the identity is wrong.
        spread: What is left of a unit without its mean, or of the weights' gradient after its terms cancel, relative to
            the size of either, below which it is rounding.
    """

    exponents: tuple[float, ...] = (-4, -3, -2, -1.5, -1, -0.5, 0.5, 1, 1.5, 2, 3, 4)
    hidden: tuple[int, ...] = (100, 100, 100)
    batch_size: int = 128
    norm: bool = True
    exact: float = 1e-13
    broken: float = 1e-6
    spread: float = 1e-9

    about: ClassVar[About] = About(
        id="scale-invariance",
        topic=Topic.DOES,
        title="Batch norm takes out the scale of the weights, and larger weights get smaller gradients",
        statement=(
            "If the weights before a batch norm are multiplied by a > 0, the norm's output stays the same, the "
            "gradient by the layer's input stays the same, and the gradient by the weights is divided by a. So "
            "large weights move less, and the growth of weights slows itself down."
        ),
        formula=(
            r"\mathrm{BN}((aW)u) = \mathrm{BN}(Wu), \qquad "
            r"\frac{\partial\,\mathrm{BN}((aW)u)}{\partial u} = \frac{\partial\,\mathrm{BN}(Wu)}{\partial u}, \qquad "
            r"\frac{\partial\,\mathrm{BN}((aW)u)}{\partial (aW)} = \frac{1}{a}\,\frac{\partial\,\mathrm{BN}(Wu)}"
            r"{\partial W}"
        ),
        symbols="Here u goes into a layer with weights W, a is a positive number, and BN is batch norm.",
        calculation=True,
        source="Ioffe & Szegedy 2015 (arXiv 1502.03167), section 3.3",
        paper=(
            "An identity, exact where ε = 0. The paper states it without ε; with a fixed ε > 0 it holds as far as "
            "ε is small beside the variance of (aW)u."
        ),
        setup=(
            "A random network of three hidden layers of 100 units, linear → batch norm → ReLU, and a linear "
            "layer; a batch of 128 images, cross-entropy, float64. The weights of each hidden layer in turn are "
            "multiplied by 12 factors a from 0.0001 to 10,000, none of them a power of 2. The norm of that layer "
            "has an ε of 1e-300 (this library's layer wants a positive one), the default 1e-5, or 1e-5·a². A "
            "control without batch norm. The gradients are those of the loss: the Jacobians times one vector. The "
            "tolerance comes from a pilot on other seeds."
        ),
        metric=(
            "relative deviation, in the Euclidean norm, of the output, of the input's gradient, and of a times the "
            "weights' gradient from those at a = 1; the largest over all a and layers"
        ),
        direction="0 but for rounding",
        pass_rule=(
            "With ε = 1e-300. Reproduced: in every seed, layer and a all three deviations are at most 1e-13, "
            "which is 450 times the spacing of float64 at 1. Not reproduced: one of them is above 1e-6 or not a "
            "number: an identity is refuted by a single exception. Otherwise inconclusive: more than rounding, "
            "less than an effect; and also if a unit before the norm hardly varies over the batch, or the weights' "
            "gradient cancels over the batch, to less than 1e-9 of its size, so that what is left is rounding."
        ),
        control="No arm has batch norm.",
        budget=2,
        smallest=128,
    )

    def without_effect(self) -> ScaleInvariance:
        """No arm has batch norm."""
        return replace(self, norm=False)

    def plan(self, seeds: Sequence[int], data: Source | None) -> list[Run]:
        """One run an arm and seed."""
        return [Run(self.about.id, arm, seed, data) for seed in seeds for arm in (*_EPS, _PLAIN)]

    def execute(self, run: Run, report: Report) -> dict[str, Value]:
        """Gives the three deviations by a: the largest over the layers; and the middle layer's gradient."""
        parts = split(run.source, run.seed)
        images = parts.train[0][: self.batch_size].double()
        labels = parts.train[1][: self.batch_size]
        sizes = (images[0].numel(), *self.hidden, parts.classes)
        norm = "before" if self.norm and run.arm != _PLAIN else "none"
        model = fully_connected(sizes, activation="relu", norm=norm, seed=run.seed).double()
        eps = _EPS.get(run.arm, 0.0)
        factors = [10.0**exponent for exponent in self.exponents]
        worst = {name: [0.0] * len(factors) for name in _STATEMENTS}
        middle, norms, predicted = ([0.0] * len(factors) for _ in range(3))
        flipped, spread = 0.0, math.inf
        places = _linears(model)
        for layer, place in enumerate(places):
            report(layer / len(places), f"layer {layer + 1}/{len(places)}")
            linear = model[place]
            assert isinstance(linear, nn.Linear)
            weight = linear.weight
            original = weight.detach().clone()
            base = _pass(model, images, labels, place, eps)
            with torch.no_grad():
                before = nn.Sequential(*list(model)[: place + 1])(images)
            variances = before.var(0, unbiased=False)
            spread = min(spread, _least_spread(before), base.left)
            for index, factor in enumerate(factors):
                own_eps = eps * factor**2 if run.arm == _FOLLOWING else eps
                weight.data = original * factor
                scaled = _pass(model, images, labels, place, own_eps)
                off = {
                    "output": _off(scaled.output, base.output),
                    "weight": _off(scaled.weight * factor, base.weight),
                    "input": _off(scaled.input, base.input),
                }
                for name, value in off.items():
                    worst[name][index] = max(worst[name][index], value)
                if layer == len(places) // 2:
                    middle[index] = off["output"]
                    norms[index] = _finite(float(scaled.weight.norm() / base.weight.norm()))
                    predicted[index] = _predicted(variances, eps, factor)
            weight.data = original * -factors[-1]
            flipped = max(flipped, _off(-_pass(model, images, labels, place, eps).output, base.output))
            weight.data = original
        return {
            **worst,
            "middle": middle,
            "gradient": norms,
            "predicted": predicted,
            "flipped": flipped,
            "spread": spread,
        }

    def conclude(self, results: Sequence[Result]) -> Conclusion:
        """Judges the largest deviation of each seed."""
        arms = {name: list(runs.values()) for name, runs in by_arm(results).items()}
        largest = {arm: [_largest(run) for run in runs] for arm, runs in arms.items()}
        found = max(largest[_NEGLIGIBLE])
        spreads = [run.number("spread") for run in arms[_NEGLIGIBLE]]
        varies = min(spreads) > self.spread
        if not varies:
            verdict = Verdict.INCONCLUSIVE
        elif found > self.broken:
            verdict = Verdict.NOT_REPRODUCED
        elif found <= self.exact:
            verdict = Verdict.REPRODUCED
        else:
            verdict = Verdict.INCONCLUSIVE
        single = {name: [max(run.numbers(name)) for run in arms[_NEGLIGIBLE]] for name in _STATEMENTS}
        effects = [
            Effect(
                "Largest relative deviation from the three identities (rounding: about 1), ε = 1e-300",
                interval([value / _ROUNDING for value in largest[_NEGLIGIBLE]]),
                "times 2⁻⁵²",
                note=_counted(largest[_NEGLIGIBLE]),
            ),
        ]
        for arm, words in ((_NEGLIGIBLE, ", ε = 1e-300 (identity: −1)"), (_PLAIN, " without batch norm")):
            # A gradient that is no number has no exponent.
            if all(max(run.numbers("gradient")) < _NOT_FINITE for run in arms[arm]):
                slopes = interval([self._slope(run) for run in arms[arm]])
                effects.append(Effect(f"Exponent of a in the weights' gradient{words}", slopes))
        if not varies:
            effects.insert(
                0,
                Effect(
                    f"Least of a unit's spread and the weights' gradient, over its size (to be above {self.spread:g})",
                    interval(spreads),
                ),
            )
        elif found > self.exact:
            name = max(_STATEMENTS, key=lambda name: max(single[name]))
            effects.insert(
                0,
                Effect(
                    f"Largest relative deviation of {_STATEMENTS[name]}, ε = 1e-300",
                    interval(single[name]),
                    note=f"a single one decides: {_written(max(single[name]))}",
                ),
            )
        words = ", ".join(f"{_STATEMENTS[name]} {_written(max(values))}" for name, values in single.items())
        plain = max(largest[_PLAIN])
        return Conclusion(
            verdict,
            f"Largest relative deviations over all seeds, layers and factors: {words}. Without batch norm the "
            f"largest is {_written(plain)}."
            + f" But a unit's spread over the batch, or the weights' gradient, is only {min(spreads):.1g} of its size: "
            "this is rounding." * (not varies),
            effects,
            [self._gradient_chart(arms), self._eps_chart(arms)],
            self._findings(arms, largest),
            # An interval of rounding errors would tell nobody anything.
            short=(
                (f"at most {_written(found)}", "relative deviation from the three identities; rounding is about 2e-16")
                if varies
                else None
            ),
        )

    def _slope(self, run: Result) -> float:
        gradient = np.maximum(run.numbers("gradient"), 1e-300)
        return float(np.polyfit(self.exponents, np.log10(gradient), 1)[0])

    def _findings(self, arms: dict[str, list[Result]], largest: dict[str, list[float]]) -> list[str]:
        measured = np.array([run.numbers("middle") for run in arms[_DEFAULT]])
        predicted = np.array([run.numbers("predicted") for run in arms[_DEFAULT]])
        gap = float(np.abs(measured - predicted).max())
        small, large = float(measured[:, 0].mean()), float(measured[:, -1].mean())
        first, last = (10.0 ** self.exponents[place] for place in (0, -1))
        flipped = max(run.number("flipped") for run in arms[_NEGLIGIBLE])
        follows = max(largest[_FOLLOWING])
        exact = "exact to rounding" if max(largest[_DEFAULT]) <= self.exact else "not exact"
        turned = "turns the sign of the output" if flipped <= self.exact else "should turn the sign of the output"
        return [
            f"With the default ε = 1e-5 the identity is {exact}: the middle layer's output deviates by "
            f"{100 * small:.2g}% at a = {first:g} and by {100 * large:.2g}% at a = {last:g}. The formula "
            "√((v + ε)/(v + ε/a²)), by which a channel of variance v changes, gives a deviation that differs from the "
            f"measured one by at most {gap:.1g}.",
            f"If ε is multiplied by a² together with the weights' scale the deviation is at most {follows:.1g}"
            + (": what breaks the identity is the fixed ε alone." if follows <= self.exact else "."),
            f"The identity is about a > 0. A negative a {turned}: BN(−aWu) = −BN(Wu) where γ = 1 "
            f"and β = 0, measured with a deviation of at most {flipped:.1g}.",
        ]

    def _gradient_chart(self, arms: dict[str, list[Result]]) -> Curves:
        factors = [10.0**exponent for exponent in self.exponents]
        lines = [Series("1/a", factors, [1 / factor for factor in factors], 3, dash="dash")]
        for label, arm, color in (("batch norm", _NEGLIGIBLE, 1), ("no batch norm", _PLAIN, 0)):
            norms = np.array([run.numbers("gradient") for run in arms[arm]])
            lines.append(Series(label, factors, _means(norms), color, markers=True, line=arm != _NEGLIGIBLE))
        # The exponent that is farthest from −1, over seeds.
        slope = max((self._slope(run) for run in arms[_NEGLIGIBLE]), key=lambda exponent: abs(exponent + 1))
        return Curves(
            "With batch norm the weights' gradient falls as 1/a"
            if abs(slope + 1) <= self.broken
            else "The weights' gradient against their scale, and the line 1/a",
            "factor a on the weights",
            "norm of the weights' gradient (1 at a = 1)",
            lines,
            log_x=True,
            log_y=True,
            note="The middle layer's weights; geometric mean over seeds.",
        )

    def _eps_chart(self, arms: dict[str, list[Result]]) -> Curves:
        factors = [10.0**exponent for exponent in self.exponents]
        predicted = np.array([run.numbers("predicted") for run in arms[_DEFAULT]])
        lines = [Series("formula", factors, _means(predicted), 0, dash="dash")]
        for label, arm, color in (
            ("ε = 1e-5", _DEFAULT, 2),
            ("ε = 1e-300", _NEGLIGIBLE, 1),
            ("ε = 1e-5·a²", _FOLLOWING, 3),
        ):
            off = np.array([run.numbers("middle") for run in arms[arm]])
            lines.append(Series(label, factors, _means(off), color, markers=True, line=arm != _DEFAULT))
        small, large = (float(np.mean([run.numbers("middle")[end] for run in arms[_DEFAULT]])) for end in (0, -1))
        return Curves(
            "A fixed ε breaks the identity where the weights are small"
            if small > 0.01 > large
            else "How far a fixed ε breaks the identity",
            "factor a on the weights",
            "relative deviation of the output from that at a = 1",
            lines,
            log_x=True,
            log_y=True,
            note="The middle layer; geometric mean over seeds. Values near 1e-16 are float64's rounding.",
        )


def _largest(run: Result) -> float:
    return max(max(run.numbers(name)) for name in _STATEMENTS)


def _written(deviation: float) -> str:
    return f"{deviation:.2g}" if deviation < _NOT_FINITE else "not a number"


def _counted(deviations: Sequence[float]) -> str:
    count = sum(value >= _NOT_FINITE for value in deviations)
    return f"in {count} of {len(deviations)} seeds not a number, counted as {_NOT_FINITE:g}" if count else ""


def _means(values: np.ndarray) -> list[float]:
    """Geometric means over seeds; a deviation of exactly 0 is drawn at a quarter of float64's spacing."""
    means: list[float] = np.exp(np.log(np.clip(values, _ROUNDING / 4, 1e300)).mean(axis=0)).tolist()
    return means


CLAIM = ScaleInvariance()
