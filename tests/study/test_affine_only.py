from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from torch import nn

from batchnorm.study import Conclusion, Result, Verdict
from batchnorm.study.apparatus.residual import Residual
from batchnorm.study.arms import norms
from batchnorm.study.claims.affine_only import KINDS, AffineOnly, train_only
from batchnorm.study.data import Split, split
from batchnorm.study.error import StudyError
from batchnorm.study.subjects import Stack, Subject
from study.helpers import DIGITS, baseline_of, run_here, wave

NETWORK = Residual(((8, 1, 2), (16, 2, 2)), stem=2)
SMALL = AffineOnly(
    subject=Stack(((8, 2), (16, 2))),
    shallower=(),
    affine_rates=(3.0,),
    random_rates=(3.0,),
    head_rates=(3.0,),
    all_rates=(0.3,),
    steps=25,
    every=25,
)


def test_a_small_run_is_deterministic_and_trains_what_it_says() -> None:
    results = run_here(SMALL, seeds=range(1))
    assert SMALL.execute(results[0].run, lambda done, note: None) == dict(results[0].values)
    trained = {result.run.arm.split(", ")[1]: result.number("trained") for result in results}
    assert trained["affine"] == trained["random"] == 2 * (8 + 16)
    assert trained["all"] == results[0].number("parameters")
    found = {result.run.arm.split(", ")[1]: result.number("best") for result in results}
    assert found["all"] > max(found["affine"], found["head"], found["random"]) > 0.15
    assert len(SMALL.conclude(results).charts) == 1


def test_with_random_weights_in_both_arms_it_is_not_reproduced() -> None:
    removed = replace(SMALL.without_effect(), steps=4, every=4)
    conclusion = removed.conclude(run_here(removed, seeds=range(5)))
    assert conclusion.verdict is not Verdict.REPRODUCED
    assert "farther than as many random weights: refuted" in conclusion.reason


def _moved(kind: str, build: Callable[[Split], nn.Module]) -> dict[str, int]:
    """How many numbers of each parameter two updates with momentum and decay of the rate have moved."""
    parts = split(DIGITS, 0)
    model = build(parts)
    train_only(model, kind, parts.train[0][:2], torch.Generator().manual_seed(1))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), 0.5, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(parts.train[0][:40]), parts.train[1][:40]).backward()
        optimizer.step()
    return {name: int((parameter != before[name]).sum()) for name, parameter in model.named_parameters()}


class Odd(nn.Module):
    """Not a stack: layers by attribute, in another order than they run, with torch's own batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 10)
        self.norm = nn.BatchNorm2d(6)
        self.convolution = nn.Conv2d(1, 6, 3)
        self.unused = nn.Linear(3, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.convolution(images)).relu().mean((2, 3)))


def _odd(parts: Split) -> nn.Module:
    torch.manual_seed(0)
    return Odd()


@pytest.mark.parametrize("build", [lambda parts: NETWORK.build(parts, 0), _odd], ids=["residual", "own"])
def test_only_what_is_named_is_trained(build: Callable[[Split], nn.Module]) -> None:
    model = build(split(DIGITS, 0))
    affine = {f"{path}.{name}" for path, norm in norms(model).items() for name, _ in norm.named_parameters()}
    moved = _moved("affine", build)
    assert {name for name, count in moved.items() if count} == affine
    head = {name for name, count in _moved("head", build).items() if count}
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name != "unused"]
    assert head == {f"{names[0]}.weight", f"{names[0]}.bias"}
    everything = _moved("all", build)
    assert all(everything[name] for name in affine | head)


def test_random_weights_are_as_many_and_of_every_layer() -> None:
    parts = split(DIGITS, 0)
    model = NETWORK.build(parts, 0)
    wanted = sum(parameter.numel() for norm in norms(model).values() for parameter in norm.parameters())
    count = train_only(model, "random", parts.train[0][:2], torch.Generator().manual_seed(1))
    assert count == wanted
    moved = _moved("random", lambda parts: NETWORK.build(parts, 0))
    affine = {f"{path}.{name}" for path, norm in norms(model).items() for name, _ in norm.named_parameters()}
    assert not any(moved[name] for name in affine)
    weights = [name for name, parameter in model.named_parameters() if parameter.dim() > 1]
    assert all(moved[name] > 0 for name in weights)
    assert sum(moved.values()) <= count
    # Some of the weights drawn see only zeros; most move.
    assert sum(moved.values()) > 0.8 * count


def test_a_network_without_gamma_and_beta_is_refused() -> None:
    parts = split(DIGITS, 0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, affine=False), nn.Flatten(), nn.Linear(144, 10))
    with pytest.raises(StudyError, match="no batch norm of the network has any that can be trained"):
        train_only(model, "affine", parts.train[0][:2], torch.Generator())


@dataclass(frozen=True)
class Given(Subject):
    """A network of somebody's."""

    make: Callable[[], nn.Module]

    @property
    def description(self) -> str:
        return "somebody's"

    def build(self, parts: Split, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.make()


def _stack(affine: bool = True, norm: bool = True, weights: bool = True) -> nn.Module:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, affine=affine), nn.Flatten(), nn.Linear(144, 10))
    for place, wanted in ((0, weights), (1, norm), (3, weights)):
        model[place].requires_grad_(wanted)
    return model


def test_what_cannot_be_tried_is_refused_before_anything_is_trained() -> None:
    parts = split(DIGITS, 0)
    for make in (partial(_stack, affine=False), partial(_stack, norm=False)):
        with pytest.raises(StudyError, match="affine-only trains gamma and beta alone"):
            SMALL.on(Given(make)).check(parts)
    with pytest.raises(StudyError, match="as many other weights"):
        SMALL.on(Given(partial(_stack, weights=False))).check(parts)
    SMALL.on(Given(_stack)).check(parts)
    AffineOnly().check(parts)


def _half_frozen() -> nn.Module:
    model = _stack()
    model[0].requires_grad_(False)
    return model


def test_what_the_user_has_frozen_stays_so() -> None:
    parts = split(DIGITS, 0)
    SMALL.on(Given(_half_frozen)).check(parts)
    for kind in KINDS:
        torch.manual_seed(0)
        moved = _moved(kind, lambda parts: _half_frozen())
        assert moved["0.weight"] == moved["0.bias"] == 0
        assert sum(moved.values()) > 0


class Holding(nn.Module):
    """With parameters of its own, which are used before those of the layer that comes last."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.layers = _stack()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(self.scale * images)


def test_a_network_that_holds_the_last_layer_is_not_the_last_layer() -> None:
    moved = _moved("head", lambda parts: Holding())
    assert {name for name, count in moved.items() if count} == {"layers.3.weight", "layers.3.bias"}


def test_on_another_network_it_has_only_that_one() -> None:
    own = AffineOnly().on(Stack(((8, 2), (16, 2))))
    arms = {run.arm.split(", ")[0] for run in own.plan([0], DIGITS)}
    assert arms == {"the network"}


def _concluded(
    *,
    affine: float = 0.7,
    random: float = 0.4,
    head: float = 0.5,
    full: float = 0.9,
    noise: float = 0.01,
    shallow: float = 0.5,
) -> Conclusion:
    claim = AffineOnly()
    accuracies = dict(zip(KINDS, (affine, random, head, full), strict=True))
    results = []
    for run in claim.plan(range(5), DIGITS):
        name, kind, _ = run.arm.split(", ")
        accuracy = accuracies[kind] if name == "depth 26" else shallow
        test = accuracy + noise * wave(run.seed) * (kind == "affine")
        values = {"best": accuracy, "test": test, "trained": 100, "parameters": 1000, **baseline_of(0.1)}
        results.append(Result(run, values))
    return claim.conclude(results)


def test_conclude_reaches_every_verdict() -> None:
    assert _concluded().verdict is Verdict.REPRODUCED
    assert _concluded(random=0.8).verdict is Verdict.NOT_REPRODUCED
    assert _concluded(head=0.8).verdict is Verdict.NOT_REPRODUCED
    assert _concluded(affine=0.45, random=0.2, head=0.2).verdict is Verdict.NOT_REPRODUCED  # not half of the way
    assert _concluded(random=0.69, noise=0.1).verdict is Verdict.INCONCLUSIVE
    assert _concluded(affine=0.2, random=0.1, head=0.1, full=0.25).verdict is Verdict.INCONCLUSIVE  # nothing learnt


def test_the_deepest_network_decides_and_the_effect_that_decides_comes_first() -> None:
    assert _concluded(shallow=0.2).verdict is Verdict.REPRODUCED
    conclusion = _concluded(head=0.8)
    assert conclusion.effects[0].name == "Test accuracy, depth 26: gamma and beta minus last layer"
    assert conclusion.short is not None
    assert conclusion.short[0] == "2 of 3 statements hold"
    way = next(effect for effect in _concluded().effects if effect.name.startswith("Way"))
    assert way.interval.estimate == pytest.approx(100 * 0.6 / 0.8, abs=1)
    assert len(conclusion.charts) == 2
