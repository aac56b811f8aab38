"""Batch norm makes every block of a residual network nearly the identity at first, and that is enough to train it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ...report.chart import Curves, Figure, Series
from ...report.number import spoken
from ..apparatus.residual import BRANCHES, PLAIN, SKIP_INIT, WITH_NORM, Block, fully_connected_residual
from ..claim import About, Claim, Conclusion, Effect, Report, Result, Run, Topic, Value, Verdict, by_arm
from ..data import Source, split
from ..learning import LEARNT, SHARE, baseline, learnt
from ..search import ends
from ..statements import Case, joined, rank
from ..statistics import interval, paired
from ..training import Recipe, train

__all__ = ["CLAIM", "ResidualIdentity"]

_INITIAL = "initial"
_COLORS = {PLAIN: 0, WITH_NORM: 1, SKIP_INIT: 2}
_LABELS = {PLAIN: "neither", WITH_NORM: "batch norm", SKIP_INIT: "SkipInit"}
_WORDS = {Verdict.REPRODUCED: "holds", Verdict.NOT_REPRODUCED: "refuted", Verdict.INCONCLUSIVE: "open"}


@dataclass(frozen=True)
class ResidualIdentity(Claim):
    """Measures the branches of random residual networks, then trains them at several depths.

    Args:
        wide: Units of the networks whose branches are measured.
        images: That they are measured on.
        width: Units of the networks that are trained.
        depths: Linear layers of those; the last decides, and is the depth of the ones that are measured.
        norm_rates: Learning rates with batch norm.
        plain_rates: Without anything.
        skip_rates: With SkipInit.
        steps: Updates of each training.
        every: Steps between two looks at the validation split.
        norm: False builds every network with plain branches: the effect removed.
        tolerance: How far a fitted power may be from the one that theory gives.
        share: Of the way from guessing to 100%, what a network must come to count as having learnt.
    """

    wide: int = 512
    images: int = 256
    width: int = 64
    depths: tuple[int, ...] = (16, 32, 64)
    norm_rates: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0)
    plain_rates: tuple[float, ...] = (1e-7, 3e-7, 1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1)
    skip_rates: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3)
    steps: int = 250
    every: int = 25
    norm: bool = True
    tolerance: float = 0.1
    share: float = SHARE

    about: ClassVar[About] = About(
        id="residual-identity",
        topic=Topic.DOES,
        title="Batch norm starts deep residual networks near the identity, and starting there is enough to train them",
        statement=(
            "A residual block adds a branch to a skip. With batch norm the branch's output has the same variance in "
            "every block, while the skip holds the sum of all branches before it: at the start block ℓ adds 1/ℓ of "
            "what is there, so a deep network is nearly the identity. Without it the branch is as large as the skip in "
            "every block, and the variance doubles from block to block. A scalar that starts at 0 at the end of each "
            "branch, SkipInit, makes the block exactly the identity, and trains deep networks without batch norm. "
            "These are four statements, and each is judged."
        ),
        formula=(
            r"x_{\ell+1} = x_\ell + f_\ell(x_\ell), \qquad \frac{\operatorname{Var}[f_\ell(x_\ell)]}"
            r"{\operatorname{Var}[x_\ell]} \approx \begin{cases} 1/\ell & \text{with batch norm} \\ 1 & "
            r"\text{without} \\ 0 & \text{with SkipInit: } x_\ell + \alpha f_\ell(x_\ell),\ \alpha = 0 \end{cases}"
        ),
        symbols="Here x(ℓ) goes into block ℓ, f(ℓ) is its branch, and α a scalar that is trained.",
        source=(
            "De & Smith 2020, Batch Normalization Biases Residual Blocks Towards the Identity Function in Deep "
            "Networks (arXiv 2002.10444)"
        ),
        paper=(
            "The paper's abstract puts the downscaling of the branch at the order of the square root of the depth, "
            "which is 1/ℓ in variances; its experiments are on far larger convolutional networks, up to a thousand "
            "layers. Here they are fully connected, of 16 to 64 layers: the powers can be compared, accuracies cannot."
        ),
        setup=(
            "Fully connected residual networks: a linear layer, blocks of (norm, ReLU, linear layer) twice, norm, "
            "ReLU, linear layer; with batch norm, with nothing in its place, or with nothing and SkipInit. He's "
            "initialisation, biases 0, the same first weights in all three. First, without training, 31 blocks of 512 "
            "units and 256 images: the variance over all images and units of branch and skip, block by block, and the "
            "slope of a straight line through the logarithm of their ratio over log ℓ. Then 64 units, and 7, 15 and 31 "
            "blocks, depth 16, 32 and 64: SGD with momentum 0.9, batches of 60, 250 steps, the rate falling in a "
            "straight line to 0. Each is searched over rates of its own in every seed, on validation accuracy: batch "
            "norm over 0.03, 0.1, 0.3 and 1, SkipInit over 0.01, 0.03, 0.1 and 0.3, the plain network over 13 rates "
            "from 10⁻⁷ to 0.1. Split and batch order are those of the seed. The test split plays no part in any "
            "choice: it is used once a run, with the weights that were best on the validation split; a network that is "
            "worse than guessing, as one that diverged at once, counts as guessing. A pilot (seeds 100 to 102) chose "
            "the rates and the widths: with 64 units single blocks of the plain network are off by chance so much that "
            "the slope is of no use."
        ),
        metric="fitted power of ℓ in Var(branch)/Var(skip); test accuracy at depth 64, each at its best rate",
        direction="−1 with batch norm and 0 without; batch norm and SkipInit above the plain network",
        pass_rule=(
            "By 95% intervals over seeds. Statements: (1) with batch norm the power lies within −1 ± 0.1; (2) without, "
            "within 0 ± 0.1; (3) at depth 64, test accuracy with batch norm minus that of the plain network, paired by "
            "seed, is above 0; (4) the same with SkipInit. A statement holds if the interval lies wholly on the stated "
            "side of each limit, and is refuted if it lies wholly on the other side of one. (3) and (4) are open, "
            "whatever their interval, where neither network compared has learnt in some seed, and do not hold unless "
            "batch norm, or SkipInit, has learnt in every seed. Reproduced: all four hold. Not reproduced: one is "
            "refuted. Otherwise inconclusive. " + LEARNT
        ),
        control="Every network is built with plain branches: no batch norm and no SkipInit in any arm.",
        budget=170,
        tier="full",
        smallest=60,
    )

    def without_effect(self) -> ResidualIdentity:
        """Plain branches everywhere."""
        return replace(self, norm=False)

    def _rates(self) -> dict[str, tuple[float, ...]]:
        return {PLAIN: self.plain_rates, WITH_NORM: self.norm_rates, SKIP_INIT: self.skip_rates}

    def plan(self, seeds: Sequence[int], data: Source | None) -> list[Run]:
        """One run a branch whose ratio is measured, and one a depth, branch and rate; for each seed."""
        arms = [f"{_INITIAL} {branch}" for branch in (WITH_NORM, PLAIN)]
        arms += [
            _arm(depth, rate, branch)
            for depth in self.depths
            for branch, rates in self._rates().items()
            for rate in rates
        ]
        return [Run(self.about.id, arm, seed, data) for seed in seeds for arm in arms]

    def execute(self, run: Run, report: Report) -> dict[str, Value]:
        """Measures one network at the start, or trains one."""
        parts = split(run.source, run.seed)
        inputs = parts.train[0][0].numel()
        first, rest = run.arm.split(" ", 1)
        if first == _INITIAL:
            model = self._build(rest, inputs, self.wide, self.depths[-1], parts.classes, run.seed)
            return {"ratios": _ratios(model, parts.train[0][: self.images])}
        rate, branch = rest.split(" ", 1)
        model = self._build(branch, inputs, self.width, int(first), parts.classes, run.seed)
        recipe = Recipe(float(rate), steps=self.steps, every=self.every, decay=True)
        return train(model, parts, recipe, seed=run.seed, report=report).values() | baseline(parts)

    def _build(self, branch: str, inputs: int, width: int, depth: int, classes: int, seed: int) -> torch.nn.Sequential:
        own = branch if self.norm else PLAIN
        return fully_connected_residual(inputs, width, _blocks(depth), branch=own, classes=classes, seed=seed)

    def conclude(self, results: Sequence[Result]) -> Conclusion:
        """Judges the four statements."""
        arms = by_arm(results)
        tuned = {depth: {branch: self._tuned(arms, depth, branch) for branch in BRANCHES} for depth in self.depths}
        deepest = self.depths[-1]
        powers = {branch: self._powers(arms, branch) for branch in (WITH_NORM, PLAIN)}
        spans = {branch: interval(found) for branch, found in powers.items()}
        verdicts, cases = [], []
        for name, branch, expected in (
            ("with batch norm the branch falls as 1/ℓ", WITH_NORM, -1.0),
            ("without it does not fall", PLAIN, 0.0),
        ):
            both = [
                Case(name, powers[branch], expected - self.tolerance, True, False),
                Case(name, powers[branch], expected + self.tolerance, False, False),
            ]
            verdicts.append((name, joined([case.verdict for case in both])))
            effect = Effect(f"Power of ℓ in Var(branch)/Var(skip): {_LABELS[branch]}", spans[branch])
            cases.append((verdicts[-1][1], effect))
        for branch in (WITH_NORM, SKIP_INIT):
            name = f"at depth {deepest} {_LABELS[branch]} is above the plain network"
            verdicts.append((name, self._above(tuned[deepest], branch)))
            cases.append((verdicts[-1][1], self._difference(tuned, deepest, branch, PLAIN)))
        effects = [effect for _, effect in sorted(cases, key=lambda case: rank(case[0]))]
        effects.append(self._difference(tuned, deepest, SKIP_INIT, WITH_NORM))
        effects += [
            self._difference(tuned, depth, branch, PLAIN)
            for depth in self.depths[:-1]
            for branch in (WITH_NORM, SKIP_INIT)
        ]
        accuracy = ", ".join(
            f"{_LABELS[branch]} {100 * _mean(_tests(tuned[deepest][branch])):.1f}%" for branch in BRANCHES
        )
        reason = (
            "; ".join(f"({place}) {name}: {_WORDS[verdict]}" for place, (name, verdict) in enumerate(verdicts, 1))
            + f". The power of ℓ is {_number(spans[WITH_NORM].estimate)} with batch norm "
            f"({_number(spans[WITH_NORM].low)} to {_number(spans[WITH_NORM].high)}) and "
            f"{_number(spans[PLAIN].estimate)} without ({_number(spans[PLAIN].low)} to "
            f"{_number(spans[PLAIN].high)}); test accuracy at depth {deepest}: {accuracy}."
        )
        held = [name for name, verdict in verdicts if verdict is Verdict.REPRODUCED]
        other = "; ".join(f"{_WORDS[found]}: {name}" for name, found in verdicts if name not in held)
        return Conclusion(
            joined([verdict for _, verdict in verdicts]),
            reason,
            effects,
            self._charts(arms, tuned),
            self._findings(arms, tuned),
            short=(f"{len(held)} of {len(verdicts)} statements hold", other or "all of them"),
        )

    def _tuned(self, arms: Mapping[str, Mapping[int, Result]], depth: int, branch: str) -> dict[int, Result]:
        """The run of the rate with the best validation accuracy; of equals, the lowest rate."""
        runs = [arms[_arm(depth, rate, branch)] for rate in self._rates()[branch]]
        return {seed: max((run[seed] for run in runs), key=lambda result: result.number("best")) for seed in runs[0]}

    def _powers(self, arms: Mapping[str, Mapping[int, Result]], branch: str) -> list[float]:
        """Slope of log ratio over log ℓ, a seed each."""
        found = []
        for result in arms[f"{_INITIAL} {branch}"].values():
            ratios = np.array(result.numbers("ratios"))
            found.append(float(np.polyfit(np.log(np.arange(1, len(ratios) + 1)), np.log(ratios), 1)[0]))
        return found

    def _above(self, tuned: Mapping[str, Mapping[int, Result]], branch: str) -> Verdict:
        own, plain = tuned[branch], tuned[PLAIN]
        have = {seed: learnt(result, self.share) for seed, result in own.items()}
        if not all(have[seed] or learnt(plain[seed], self.share) for seed in own):
            return Verdict.INCONCLUSIVE
        apart = [mine - theirs for mine, theirs in zip(_tests(own), _tests(plain), strict=True)]
        verdict = Case(branch, apart, 0.0, True, False).verdict
        return Verdict.INCONCLUSIVE if verdict is Verdict.REPRODUCED and not all(have.values()) else verdict

    def _difference(
        self, tuned: Mapping[int, Mapping[str, Mapping[int, Result]]], depth: int, branch: str, other: str
    ) -> Effect:
        span = paired(_tests(tuned[depth][branch]), _tests(tuned[depth][other])).scaled(100)
        name = f"Test accuracy at depth {depth}, each at its best rate: {_LABELS[branch]} minus {_LABELS[other]}"
        return Effect(name, span, "points")

    def _findings(
        self,
        arms: Mapping[str, Mapping[int, Result]],
        tuned: Mapping[int, Mapping[str, Mapping[int, Result]]],
    ) -> list[str]:
        last = _mean([r.numbers("ratios")[-1] for r in arms[f"{_INITIAL} {WITH_NORM}"].values()])
        plain = _mean([r.numbers("ratios")[-1] for r in arms[f"{_INITIAL} {PLAIN}"].values()])
        blocks = _blocks(self.depths[-1])
        found = [
            f"In the last of {blocks} blocks the arm with batch norm starts with a branch of {math.sqrt(last):.2f} "
            f"times the skip's standard deviation, where 1/√{blocks} is {1 / math.sqrt(blocks):.2f}; the plain one "
            f"with {math.sqrt(plain):.2f} times."
        ]
        for depth in self.depths:
            usable = "; ".join(f"{_LABELS[branch]}: {self._usable(arms, depth, branch)}" for branch in BRANCHES)
            found.append(
                f"Rates at which a network of depth {depth} has learnt in every seed. {usable[0].upper()}{usable[1:]}."
            )
        choices = [
            (float(result.run.arm.split()[1]), self._rates()[branch])
            for branches in tuned.values()
            for branch, runs in branches.items()
            for result in runs.values()
        ]
        chosen = "; ".join(
            f"{_LABELS[branch]} {', '.join(spoken(float(r.run.arm.split()[1])) for r in runs.values())}"
            for branch, runs in tuned[self.depths[-1]].items()
        )
        found.append(
            f"Rates chosen at depth {self.depths[-1]}, seed by seed: {chosen}. {ends(choices)} That counts all depths."
        )
        return found

    def _usable(self, arms: Mapping[str, Mapping[int, Result]], depth: int, branch: str) -> str:
        rates = [
            rate
            for rate in self._rates()[branch]
            if all(learnt(result, self.share) for result in arms[_arm(depth, rate, branch)].values())
        ]
        return ", ".join(spoken(rate) for rate in rates) or "none of those tried"

    def _charts(
        self,
        arms: Mapping[str, Mapping[int, Result]],
        tuned: Mapping[int, Mapping[str, Mapping[int, Result]]],
    ) -> list[Figure]:
        deepest = self.depths[-1]
        blocks = [float(block) for block in range(1, _blocks(deepest) + 1)]
        lines = [Series("1/ℓ", blocks, [1 / block for block in blocks], 0, dash="dot")]
        for branch in (PLAIN, WITH_NORM):
            ratios = np.array([result.numbers("ratios") for result in arms[f"{_INITIAL} {branch}"].values()])
            middle = np.exp(np.log(ratios).mean(0)).tolist()
            low, high = ratios.min(0).tolist(), ratios.max(0).tolist()
            lines.append(Series(_LABELS[branch], blocks, middle, _COLORS[branch], low, high))
        means = {branch: [100 * _mean(_tests(tuned[depth][branch])) for depth in self.depths] for branch in BRANCHES}
        depths = [
            Series(
                _LABELS[branch],
                [float(depth) for depth in self.depths],
                means[branch],
                _COLORS[branch],
                [100 * min(_tests(tuned[depth][branch])) for depth in self.depths],
                [100 * max(_tests(tuned[depth][branch])) for depth in self.depths],
                markers=True,
            )
            for branch in BRANCHES
        ]
        rates = []
        for branch in BRANCHES:
            best = [
                [100 * result.number("best") for result in arms[_arm(deepest, rate, branch)].values()]
                for rate in self._rates()[branch]
            ]
            rates.append(
                Series(
                    _LABELS[branch],
                    self._rates()[branch],
                    [_mean(values) for values in best],
                    _COLORS[branch],
                    [min(values) for values in best],
                    [max(values) for values in best],
                    markers=True,
                )
            )
        band = "the band spans the lowest and the highest seed."
        reached = ", ".join(f"{means[branch][-1]:.0f}% with {_LABELS[branch]}" for branch in BRANCHES)
        return [
            Curves(
                f"Before training: how large the branch is beside the skip, in {len(blocks)} blocks",
                "block ℓ",
                "Var(branch) / Var(skip)",
                lines,
                log_x=True,
                log_y=True,
                x_ticks=[block for block in (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0) if block <= blocks[-1]],
                note=f"Geometric mean over seeds; {band} With SkipInit it is 0 in every block.",
            ),
            Curves(
                f"At depth {deepest}, each at its best rate, test accuracy is {reached}",
                "depth (linear layers)",
                "test accuracy (%)",
                depths,
                log_x=True,
                y_range=(0, 100),
                x_ticks=[float(depth) for depth in self.depths],
                note=f"Mean over seeds; {band}",
            ),
            Curves(
                f"At which learning rates a network of depth {deepest} learns",
                "learning rate at the first step",
                "best validation accuracy (%)",
                rates,
                log_x=True,
                y_range=(0, 100),
                note=f"Mean over seeds; {band} A network that diverged before the first look is at 0.",
            ),
        ]


@torch.no_grad()
def _ratios(model: torch.nn.Sequential, images: Tensor) -> list[float]:
    """Variance of the branch over that of the skip, over all images and units, block by block."""
    hidden, found = images, []
    for layer in model:
        if isinstance(layer, Block):
            skip, branch = layer.parts(hidden)
            # Without batch norm the variance doubles in every block: float64 for the sums of squares.
            found.append(float(branch.double().var() / skip.double().var()))
            hidden = skip + branch
        else:
            hidden = layer(hidden)
    return found


def _arm(depth: int, rate: float, branch: str) -> str:
    return f"{depth} {rate:g} {branch}"


def _blocks(depth: int) -> int:
    """Blocks of a network with so many linear layers: all but the first and the last are in blocks, two in each."""
    return (depth - 2) // 2


def _tests(runs: Mapping[int, Result]) -> list[float]:
    return [max(result.number("test"), result.number("guessing")) for result in runs.values()]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _number(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


CLAIM = ResidualIdentity()
