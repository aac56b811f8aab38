"""How far a random network goes when nothing but batch norm's gamma and beta is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...report.chart import Curves, Figure, Intervals, Row, Series
from ...report.number import spoken
from ..apparatus.residual import Residual
from ..arms import derive, norms
from ..claim import About, Conclusion, Effect, Report, Result, Run, SubjectClaim, Topic, Value, Verdict, by_arm
from ..data import Source, Split, split
from ..error import StudyError
from ..learning import LEARNT, SHARE, baseline, learnt, shortfall
from ..search import ends
from ..statements import Case, joined, rank
from ..statistics import interval, paired
from ..subjects import Subject
from ..training import Recipe, train

__all__ = ["CLAIM", "KINDS", "AffineOnly", "train_only"]

#: What of a network is trained.
KINDS = ("affine", "random", "head", "all")

# Blocks a stage: 4, and 1 and 2.
_DEEPEST = Residual(((8, 1, 4), (16, 2, 4), (32, 2, 4)))
_SHALLOWER = tuple(Residual(((8, 1, blocks), (16, 2, blocks), (32, 2, blocks))) for blocks in (1, 2))

_LABELS = {"affine": "gamma and beta", "random": "random weights", "head": "last layer", "all": "all weights"}
_COLORS = {"affine": 1, "random": 2, "head": 3, "all": 0}
_WORDS = {Verdict.REPRODUCED: "holds", Verdict.NOT_REPRODUCED: "refuted", Verdict.INCONCLUSIVE: "open"}


def train_only(model: nn.Module, kind: str, images: Tensor, generator: torch.Generator) -> int:
    """Lets only a part of a model's parameters be trained, and gives how many numbers that are.

    A parameter that requires no gradient stays as it is, whatever the part.

    Args:
        model: With batch norm; the other parameters no longer require a gradient.
        kind: "affine" for gammas and betas of all batch norms; "random" for as many other weights, drawn from all
            weights that are no vectors, evenly over their output channels; "head" for the parameters of the layer
            that comes last; "all".
        images: Some that the model takes, to see which layer comes last.
        generator: Draws the random weights.

    Raises:
        StudyError: If no batch norm of the model has gamma or beta, or the part has no parameters.
    """
    free = {id(parameter): parameter for parameter in model.parameters() if parameter.requires_grad}
    affine = {
        id(parameter): parameter
        for norm in norms(model).values()
        for parameter in norm.parameters()
        if id(parameter) in free
    }
    count = sum(parameter.numel() for parameter in affine.values())
    if not count:
        raise StudyError(
            "affine-only trains gamma and beta alone, and no batch norm of the network has any that can be trained.",
            "give a network whose norms are affine, with parameters that require a gradient",
        )
    if kind == "all":
        return sum(parameter.numel() for parameter in free.values())
    chosen = affine
    if kind == "head":
        chosen = {id(parameter): parameter for parameter in _last(model, images) if id(parameter) in free}
    if kind == "random":
        weights = [weight for weight in free.values() if weight.dim() > 1 and id(weight) not in affine]
        if not weights:
            raise StudyError(
                "affine-only trains as many other weights too, and the network has none that can be trained.",
                "give a network with weights that require a gradient",
            )
        masks = _drawn(weights, count, generator)
        for weight, mask in zip(weights, masks, strict=True):
            # A gradient of 0 leaves a weight where it is, with momentum too: its velocity stays 0.
            weight.register_hook(lambda gradient, mask=mask: gradient * mask)
        chosen, count = {id(weight): weight for weight in weights}, sum(int(mask.sum()) for mask in masks)
    for key, parameter in free.items():
        parameter.requires_grad_(key in chosen)
    return count if kind == "random" else sum(parameter.numel() for parameter in chosen.values())


def _drawn(weights: Sequence[Tensor], count: int, generator: torch.Generator) -> list[Tensor]:
    """A 0/1 mask a weight: so many ones in all, shared evenly among the rows of all weights, each an output channel."""
    rows = [(place, row) for place, weight in enumerate(weights) for row in range(len(weight))]
    share, left = divmod(count, len(rows))
    masks = [torch.zeros_like(weight) for weight in weights]
    for turn, place in enumerate(torch.randperm(len(rows), generator=generator).tolist()):
        layer, row = rows[place]
        flat = masks[layer][row].view(-1)
        # A row of fewer weights than its share gives all it has.
        flat[torch.randperm(len(flat), generator=generator)[: share + (turn < left)]] = 1.0
    return masks


def _last(model: nn.Module, images: Tensor) -> list[nn.Parameter]:
    """Parameters of the last layer that some images reach and that can be trained, batch norms aside.

    The last to begin: one that holds others ends after them.
    """
    called: list[list[nn.Parameter]] = []
    aside = set(norms(model).values())
    with ExitStack() as stack, torch.no_grad():
        for module in model.modules():
            own = [parameter for parameter in module.parameters(recurse=False) if parameter.requires_grad]
            if module not in aside and own:
                hook = module.register_forward_pre_hook(lambda _, given, own=own: called.append(own))
                stack.callback(hook.remove)
        stack.callback(model.train, model.training)
        model.eval()(images)
    if not called:
        raise StudyError(
            "affine-only trains the last layer alone too, and no layer of the network but batch norms can be trained.",
            "give a network with a layer whose parameters require a gradient",
        )
    return called[-1]


@dataclass(frozen=True, kw_only=True)
class AffineOnly(SubjectClaim):
    """Trains parts of random networks: gammas and betas, as many other weights, the last layer, or everything.

    Args:
        subject: The network that decides.
        shallower: Others, for the picture; a network of the user's has none.
        affine_rates: Learning rates that gammas and betas are searched over.
        random_rates: Random weights.
        head_rates: The last layer.
        all_rates: Everything.
        steps: Updates of each run.
        every: Steps between two looks at the validation split.
        affine: False trains the random weights also in the arm named affine: the effect removed.
        way: Of the way from guessing to the network that is trained wholly, what gammas and betas must come.
        share: Of the way from guessing to 100%, what that network must come.
    """

    subject: Subject = _DEEPEST
    shallower: tuple[Subject, ...] = _SHALLOWER
    affine_rates: tuple[float, ...] = (1.0, 3.0, 10.0)
    random_rates: tuple[float, ...] = (1.0, 3.0, 10.0)
    head_rates: tuple[float, ...] = (1.0, 3.0)
    all_rates: tuple[float, ...] = (0.1, 0.3)
    steps: int = 120
    every: int = 40
    affine: bool = True
    way: float = 0.5
    share: float = SHARE

    about: ClassVar[About] = About(
        id="affine-only",
        topic=Topic.DOES,
        title="Training only gamma and beta of a random network goes far",
        statement=(
            "All weights of a deep residual network stay as they were drawn; only the scale γ and the shift β of its "
            "batch norms are trained, in the networks of this study about one in a hundred of the parameters. That "
            "goes far: farther than training as many other weights, farther than training the last layer, and more "
            "than half of the way that training everything goes. These are three statements, and each is judged."
        ),
        formula=(
            r"\min_{\gamma, \beta}\ \mathcal{L}\bigl(\gamma, \beta;\, W_0\bigr) \qquad \text{against} \qquad "
            r"\min_{W_S}\ \mathcal{L}\bigl(\gamma_0, \beta_0;\, W_S, W_{0 \setminus S}\bigr), \quad |S| = |\gamma| + "
            r"|\beta|"
        ),
        symbols=(
            "Here ℒ is the loss, W₀ the weights as they were drawn, γ₀ = 1 and β₀ = 0 for a network of the study, and "
            "S the random weights that are trained instead."
        ),
        source=(
            "Frankle, Schwab & Morcos 2021, Training BatchNorm and Only BatchNorm (arXiv 2003.00152); the limit of "
            "half of the way is ours"
        ),
        paper=(
            "The abstract says that sufficiently deep ResNets reach 82% on CIFAR-10 in this way, far more than with "
            "as many weights drawn elsewhere in the network. Here far smaller networks take 120 steps of 60 images, "
            "which is two or three epochs of the default data: the order of the arms can be compared, the accuracies "
            "cannot."
        ),
        setup=(
            "Four arms of the same network, from the same first weights and with the same order of batches: all gammas "
            "and betas; as many other weights, drawn evenly over the output channels of all layers; the layer that "
            "comes last; everything. Batch norm normalises by its batch in all of them. Without --model the network is "
            "also tried with one and two blocks a stage, depth 8 and 14, where nothing is judged. SGD with momentum "
            "0.9, batches of 60, 120 steps, the rate falling in a straight line to 0. In each seed, each arm is "
            "searched on validation accuracy: gammas and betas and random weights over 1, 3 and 10, the last layer "
            "over 1 and 3, everything over 0.1 and 0.3. A pilot (seed 100 of the default data) chose these rates, and "
            "its networks were a large part of the way after 140 steps, so that half of it was no bold guess. The test "
            "split plays no part in any choice: it is used once a run, with the weights that were best on the "
            "validation split."
        ),
        metric="test accuracy of the deepest network, each arm at its best rate",
        direction="gamma and beta above random weights, above the last layer, and past half of the way",
        pass_rule=(
            "By 95% intervals over seeds. Statements: (1) test accuracy with gamma and beta trained minus with as many "
            "random weights, paired by seed, is above 0; (2) minus with the last layer, above 0; (3) what it is above "
            "guessing, as a share of what training everything is above guessing, is above 1/2. A statement holds if "
            "its interval lies wholly above, and is refuted if wholly below. Reproduced: all three hold. Not "
            "reproduced: one is refuted. Otherwise inconclusive; so too if a network that is trained wholly has not "
            "learnt. " + LEARNT
        ),
        control="The arm named gamma and beta trains the same random weights as the arm beside it.",
        budget=200,
        tier="full",
        smallest=60,
    )

    def on(self, subject: Subject) -> AffineOnly:
        """The same claim about another network, alone."""
        return replace(self, subject=subject, shallower=())

    def without_effect(self) -> AffineOnly:
        """Random weights where gammas and betas should be."""
        return replace(self, affine=False)

    def check(self, parts: Split) -> None:
        """As for every claim; and each of the parts must hold something to train."""
        super().check(parts)
        for kind in KINDS:
            model = derive(self.subject.build(parts, 0), "batch")
            train_only(model, kind, parts.train[0][:2], torch.Generator().manual_seed(0))

    def _networks(self) -> dict[str, Subject]:
        """All networks by name; the last one decides."""
        return {_name(subject): subject for subject in (*self.shallower, self.subject)}

    def _rates(self) -> dict[str, tuple[float, ...]]:
        rates = (self.affine_rates, self.random_rates, self.head_rates, self.all_rates)
        return dict(zip(KINDS, rates, strict=True))

    def plan(self, seeds: Sequence[int], data: Source | None) -> list[Run]:
        """One run a network, part that is trained, rate and seed."""
        return [
            Run(self.about.id, _arm(name, kind, rate), seed, data)
            for seed in seeds
            for name in self._networks()
            for kind, rates in self._rates().items()
            for rate in rates
        ]

    def execute(self, run: Run, report: Report) -> dict[str, Value]:
        """Trains one part of one network."""
        name, kind, rate = run.arm.split(", ")
        parts = split(run.source, run.seed)
        model = derive(self._networks()[name].build(parts, run.seed), "batch")
        total = sum(parameter.numel() for parameter in model.parameters())
        generator = torch.Generator().manual_seed(run.seed)
        own = kind if self.affine or kind != "affine" else "random"
        trained = train_only(model, own, parts.train[0][:2], generator)
        recipe = Recipe(float(rate), steps=self.steps, every=self.every, decay=True)
        history = train(model, parts, recipe, seed=run.seed, report=report)
        return history.values() | baseline(parts) | {"trained": trained, "parameters": total}

    def conclude(self, results: Sequence[Result]) -> Conclusion:
        """Judges the three statements on the deepest network."""
        arms = by_arm(results)
        tuned = {name: {kind: self._tuned(arms, name, kind) for kind in KINDS} for name in self._networks()}
        deepest = _name(self.subject)
        own = tuned[deepest]
        shares = [
            max(0.0, test - guess) / (full - guess) if full > guess else 0.0
            for test, full, guess in zip(
                _tests(own["affine"]), _tests(own["all"]), [r.number("guessing") for r in own["all"]], strict=True
            )
        ]
        cases = [
            Case(
                f"gamma and beta go farther than {word}",
                [mine - theirs for mine, theirs in zip(_tests(own["affine"]), _tests(own[kind]), strict=True)],
                0.0,
                True,
                False,
            )
            for kind, word in (("random", "as many random weights"), ("head", "the last layer"))
        ]
        cases.append(Case(f"they go more than {self.way:g} of the way", shares, self.way, True, False))
        effects = [
            *(_difference(own, kind, deepest) for kind in ("random", "head")),
            Effect(
                f"Way from guessing to all weights that gamma and beta go, {deepest}",
                interval(shares).scaled(100),
                "%",
            ),
        ]
        verdicts = [case.verdict for case in cases]
        order = sorted(range(len(cases)), key=lambda place: rank(verdicts[place]))
        effects = [effects[place] for place in order]
        effects += [_difference(tuned[name], kind, name) for name in list(tuned)[:-1] for kind in ("random", "head")]
        effects += [
            Effect(f"Test accuracy, {_LABELS[kind]}, {name}", interval(_tests(runs)).scaled(100), "%")
            for name, kinds in tuned.items()
            for kind, runs in kinds.items()
        ]
        lacking = [result for result in own["all"] if not learnt(result, self.share)]
        judged = "; ".join(f"({place}) {case.name}: {_WORDS[case.verdict]}" for place, case in enumerate(cases, 1))
        accuracy = ", ".join(f"{_LABELS[kind]} {100 * _mean(_tests(runs)):.1f}%" for kind, runs in own.items())
        reason = f"{judged}. Test accuracy, {deepest}: {accuracy}."
        if lacking:
            reason += f" But trained wholly it stayed at {shortfall(lacking[0], self.share)}."
        held = sum(verdict is Verdict.REPRODUCED for verdict in verdicts)
        other = "; ".join(f"{_WORDS[case.verdict]}: {case.name}" for case in cases if _WORDS[case.verdict] != "holds")
        return Conclusion(
            Verdict.INCONCLUSIVE if lacking else joined(verdicts),
            reason,
            effects,
            self._charts(tuned),
            self._findings(tuned),
            short=(f"{held} of {len(cases)} statements hold", other or "all of them"),
        )

    def _tuned(self, arms: Mapping[str, Mapping[int, Result]], name: str, kind: str) -> list[Result]:
        """Seed by seed the run of the rate with the best validation accuracy; of equals, the lowest rate."""
        runs = [arms[_arm(name, kind, rate)] for rate in self._rates()[kind]]
        return [max((run[seed] for run in runs), key=lambda result: result.number("best")) for seed in runs[0]]

    def _findings(self, tuned: Mapping[str, Mapping[str, Sequence[Result]]]) -> list[str]:
        rates = self._rates()
        found = []
        for name, kinds in tuned.items():
            numbers = {kind: int(runs[0].number("trained")) for kind, runs in kinds.items()}
            found.append(
                f"What is trained, {name}: {numbers['affine']:,} gammas and betas, which is "
                f"{100 * numbers['affine'] / numbers['all']:.2g}%, {numbers['random']:,} random "
                f"weights, {numbers['head']:,} numbers in the last layer, of {numbers['all']:,} parameters in all."
            )
        means = {name: 100 * _mean(_tests(kinds["affine"])) for name, kinds in tuned.items()}
        if len(means) > 1:
            grown = ", ".join(f"{mean:.1f}% at {name}" for name, mean in means.items())
            found.append(f"With gamma and beta alone test accuracy is {grown}. A deeper network has more of both.")
        chosen = "; ".join(
            f"{_LABELS[kind]} {', '.join(spoken(float(r.run.arm.split(', ')[2])) for r in runs)}"
            for kind, runs in tuned[_name(self.subject)].items()
        )
        choices = [
            (float(result.run.arm.split(", ")[2]), rates[kind])
            for kinds in tuned.values()
            for kind, runs in kinds.items()
            for result in runs
        ]
        found.append(
            f"Rates chosen, seed by seed, {_name(self.subject)}: {chosen}. {ends(choices)} That counts all networks."
        )
        return found

    def _charts(self, tuned: Mapping[str, Mapping[str, Sequence[Result]]]) -> list[Figure]:
        deepest = _name(self.subject)
        rows = []
        for kind in ("all", "affine", "head", "random"):
            span = interval(_tests(tuned[deepest][kind])).scaled(100)
            rows.append(Row(_LABELS[kind], span.estimate, span.low, span.high, _COLORS[kind]))
        guess = 100 * _mean([result.number("guessing") for result in tuned[deepest]["all"]])
        best = {kind: 100 * _mean(_tests(runs)) for kind, runs in tuned[deepest].items()}
        charts: list[Figure] = [
            Intervals(
                f"Training only gamma and beta gives {best['affine']:.0f}%, all weights {best['all']:.0f}%",
                "test accuracy (%)",
                rows,
                guess,
                "guessing",
                note=f"{deepest.capitalize()}, each at its best rate. 95% intervals over seeds.",
            )
        ]
        depths = [subject.depth for subject in (*self.shallower, self.subject) if isinstance(subject, Residual)]
        if len(depths) == len(tuned) > 1:
            lines = []
            for kind in ("all", "affine", "head", "random"):
                found = [[100 * test for test in _tests(tuned[name][kind])] for name in tuned]
                lines.append(
                    Series(
                        _LABELS[kind],
                        [float(depth) for depth in depths],
                        [_mean(tests) for tests in found],
                        _COLORS[kind],
                        [min(tests) for tests in found],
                        [max(tests) for tests in found],
                        markers=True,
                    )
                )
            charts.append(
                Curves(
                    "What is reached by what is trained, at several depths",
                    "depth (layers)",
                    "test accuracy (%)",
                    lines,
                    y_range=(0, 100),
                    x_ticks=[float(depth) for depth in depths],
                    note="Mean over seeds; the band spans the lowest and the highest seed.",
                )
            )
        return charts


def _name(subject: Subject) -> str:
    return f"depth {subject.depth}" if isinstance(subject, Residual) else "the network"


def _arm(name: str, kind: str, rate: float) -> str:
    return f"{name}, {kind}, {rate:g}"


def _difference(kinds: Mapping[str, Sequence[Result]], other: str, name: str) -> Effect:
    span = paired(_tests(kinds["affine"]), _tests(kinds[other])).scaled(100)
    return Effect(f"Test accuracy, {name}: gamma and beta minus {_LABELS[other]}", span, "points")


def _tests(runs: Sequence[Result]) -> list[float]:
    return [result.number("test") for result in runs]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


CLAIM = AffineOnly()
