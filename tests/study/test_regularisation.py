import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from batchnorm.report.chart import Curves, Intervals
from batchnorm.study import Conclusion, Result, Run, Verdict
from batchnorm.study.apparatus.small_parts import normalised_by
from batchnorm.study.arms import norms
from batchnorm.study.claims.regularisation import CLAIM, Regularisation
from batchnorm.study.data import Split, split
from batchnorm.study.subjects import Stack, Subject
from study.helpers import DIGITS, baseline_of, run_here, wave

SMALL = Regularisation(
    subject=Stack(((6, 1), (8, 2))),
    images=96,
    batch_size=32,
    sizes=(2, 8, 32),
    penalties=(0.05,),
    rates=(0.1, 0.3),
    steps=24,
    share=0.05,
)


def test_a_small_run_is_deterministic_and_its_networks_differ() -> None:
    (result,) = run_here(SMALL, seeds=[0])
    state = torch.random.get_rng_state()
    torch.rand(3)  # what was drawn before does not matter
    assert SMALL.execute(result.run, lambda done, note: None) == dict(result.values)
    torch.random.set_rng_state(state)
    for what in ("gap", "population gap"):
        gaps = result.numbers(what)
        assert len(set(gaps)) == len(gaps) == (3 if what == "gap" else 2)
    for place, gap in enumerate(result.numbers("gap")):
        assert gap == result.numbers("test loss")[place] - result.numbers("train loss")[place]
    # Noise and the penalty keep both from fitting the images as closely.
    assert result.numbers("train loss")[0] > result.numbers("train loss")[-1]
    assert result.numbers("population train loss")[1] > result.numbers("population train loss")[0]
    assert result.number("images") == 96
    # The rate is that of the better validation accuracy; population statistics have a search of their own.
    assert result.number("population rate") in SMALL.rates
    assert result.number("rate") == SMALL.rates[max((0, 1), key=result.numbers("search").__getitem__)]


def test_with_the_effect_removed_it_is_not_reproduced() -> None:
    removed = replace(SMALL.without_effect(), penalties=(), rates=(0.3,), sizes=(2, 32), images=320, steps=50)
    results = run_here(removed, seeds=range(5))
    for result in results:
        assert len(set(result.numbers("gap"))) == 1  # all are one network
    assert removed.conclude(results).verdict is Verdict.NOT_REPRODUCED


class _Branches(nn.Module):
    """Torch's own norms, one of them without γ, dropout, and no Sequential."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(channels, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.inner, self.outer = nn.BatchNorm2d(6), nn.BatchNorm1d(6, affine=False)
        self.drop, self.head = nn.Dropout(0.1), nn.Linear(6, classes)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.inner(self.first(images)).relu()
        return self.head(self.drop(self.outer((hidden + self.second(hidden)).mean((2, 3)))))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class _OfSomebody(Subject):
    @property
    def description(self) -> str:
        return "somebody's"

    def build(self, parts: Split, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return _Branches(parts.channels, parts.classes)


@dataclass(frozen=True)
class _Frozen(_OfSomebody):
    """With norms that are not trained."""

    def build(self, parts: Split, seed: int) -> nn.Module:
        model = super().build(parts, seed)
        for parameter in model.inner.parameters():
            parameter.requires_grad_(False)
        return model


def test_it_takes_a_network_of_somebody_else() -> None:
    claim = replace(SMALL, steps=4).on(_OfSomebody())
    before = torch.random.get_rng_state()
    (result,) = run_here(claim, seeds=[1])
    assert torch.equal(torch.random.get_rng_state(), before)
    assert result.values["finite"]
    assert result.values["population finite"]
    assert len(set(result.numbers("gap"))) == 3


def test_population_statistics_normalise_as_in_evaluation_and_the_penalty_is_in_the_gradient() -> None:
    parts = split(DIGITS, 0)
    images, labels = parts.train[0][:32], parts.train[1][:32]
    gradients = []
    for penalty in (0.0, 0.25):
        model = SMALL._population(parts, parts, 0, penalty)
        with torch.no_grad():
            evaluated = model.eval()(images)
        outputs = model.train()(images)
        torch.testing.assert_close(outputs, evaluated, rtol=1e-4, atol=1e-4)
        nn.functional.cross_entropy(outputs, labels).backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters()})
    gammas = [name for name, weight in model.named_parameters() if bool((weight == 1).all())]
    assert len(gammas) == 2
    for name, gradient in gradients[0].items():
        assert gradient is not None
        # 2·λ·γ, where γ = 1.
        torch.testing.assert_close(gradients[1][name], gradient + 0.5 * (name in gammas))


@pytest.mark.parametrize("gap", [0.1, 1 / 3, 0.7531])
def test_equal_gaps_have_no_slope_at_all(gap: float) -> None:
    # Logarithms whose distances from their mean do not add up to 0 in floating point.
    found = _concluded(replace(CLAIM, sizes=(3, 5, 7, 11)), slope=0.0, noise=0.0, gap=gap)
    assert found.effects[0].interval.high == found.effects[0].interval.low == 0.0


def _concluded(
    claim: Regularisation = CLAIM,
    *,
    slope: float = 0.02,
    noise: float = 0.001,
    learned: float = 0.9,
    finite: bool = True,
    population: bool = True,
    seeds: int = 5,
    drop: float = -0.1,
    gap: float = 0.5,
    by_population: tuple[float, ...] = (0.9, 0.9, 0.9),
) -> Conclusion:
    """Made-up results of five seeds."""
    sizes, penalties = claim.sizes, claim.penalties
    results = []
    for run in claim.plan(range(seeds), DIGITS):
        gaps = [gap + (slope + noise * wave(run.seed)) * math.log2(size) for size in sizes]
        values: dict[str, float | list[float]] = {
            "rate": 0.3,
            "population rate": 0.3,
            "search": [0.5, 0.9, 0.5],
            "finite": finite,
        }
        values |= {"population finite": population, "validation": learned, "images": 600}
        for penalty, found in zip((0.0, *penalties), by_population, strict=True):
            values[f"population validation {penalty:g}"] = found
        values |= {"gap": gaps, "train loss": [0.1] * len(sizes), "test loss": [each + 0.1 for each in gaps]}
        values |= {"train accuracy": [1.0] * len(sizes), "test accuracy": [0.8 + 0.01 * i for i in range(len(sizes))]}
        values["population gap"] = [0.6] + [0.6 + drop * (i + 1) for i in range(len(penalties))]
        for what in ("train loss", "test loss", "train accuracy", "test accuracy"):
            values[f"population {what}"] = [0.7] * (1 + len(penalties))
        results.append(Result(run, values | baseline_of(0.1)))
    return claim.conclude(results)


@pytest.mark.parametrize(
    ("given", "verdict"),
    [
        ({}, Verdict.REPRODUCED),
        ({"slope": -0.02}, Verdict.NOT_REPRODUCED),
        ({"slope": 0.0, "noise": 0.0}, Verdict.NOT_REPRODUCED),
        ({"slope": 0.001, "noise": 0.02}, Verdict.INCONCLUSIVE),
        ({"learned": 0.2}, Verdict.INCONCLUSIVE),
        ({"finite": False}, Verdict.INCONCLUSIVE),
        ({"population": False}, Verdict.REPRODUCED),
        ({"seeds": 1}, Verdict.INCONCLUSIVE),
    ],
)
def test_conclude_reaches_every_verdict(given: dict[str, float], verdict: Verdict) -> None:
    assert _concluded(**given).verdict is verdict  # type: ignore[arg-type]


def test_the_slope_is_that_of_the_line_and_what_is_said_is_measured() -> None:
    found = _concluded(noise=0.0)
    assert found.effects[0].interval.estimate == pytest.approx(0.02)
    assert found.effects[1].interval.estimate == pytest.approx(0.1)  # five doublings, from 2 to 64
    assert "+0.020" in found.reason
    assert "lowest with 2 images together, the accuracy highest with 64" in found.findings[1]
    assert "λ = 0.001 changes the gap by −0.100" in found.findings[2]
    assert "No chosen rate is an end of its grid." in found.findings[3]
    first, _, last = found.charts
    assert isinstance(first, Curves)
    assert isinstance(last, Intervals)
    assert first.title.startswith("The more images")
    assert [row.estimate for row in last.rows] == pytest.approx([-0.1, -0.2])
    flat = _concluded(slope=-0.02)
    assert isinstance(flat.charts[0], Curves)
    assert not flat.charts[0].title.startswith("The more images")


def test_what_was_not_measured_is_not_said() -> None:
    broken = _concluded(population=False)
    assert "stopped being finite" in broken.findings[2]
    assert len(broken.charts) == 2
    assert not [effect for effect in broken.effects if "population" in effect.name]
    assert "stayed at 20.0% validation accuracy" in _concluded(learned=0.2).reason


def test_a_penalised_network_that_has_not_learnt_is_left_out_and_said_to_be() -> None:
    found = _concluded(by_population=(0.9, 0.9, 0.31))
    assert "With λ = 0.01 the network has not learnt in 5 of 5 seeds" in found.findings[2]
    assert "λ = 0.001 changes the gap" in found.findings[2]
    assert not [effect for effect in found.effects if "0.01 " in effect.name]
    last = found.charts[-1]
    assert isinstance(last, Intervals)
    assert [row.label for row in last.rows] == ["λ = 0.001"]
    # The first may lack and the second not: each keeps its own numbers.
    other = _concluded(by_population=(0.9, 0.31, 0.9), noise=0.0).charts
    assert isinstance(other[-1], Intervals)
    assert [(row.label, row.estimate) for row in other[-1].rows] == [("λ = 0.01", pytest.approx(-0.2))]
    assert isinstance(other[0], Curves)
    assert other[0].series[-1].y == pytest.approx([0.4, 0.4])
    alone = _concluded(by_population=(0.31, 0.9, 0.9))
    assert alone.findings[2].startswith("By population statistics alone a network stayed at 31.0%")
    assert not [effect for effect in alone.effects if "population" in effect.name]
    assert alone.verdict is Verdict.REPRODUCED


def test_running_statistics_look_back_over_as_many_images_whatever_the_size() -> None:
    model = normalised_by(SMALL.subject.build(split(DIGITS, 0), 0), 8, 32)
    for norm in norms(model).values():
        assert (1 - norm.momentum) ** 4 == pytest.approx(0.9)


def test_frozen_gammas_take_no_penalty() -> None:
    claim = replace(SMALL, steps=2, rates=(0.1,), sizes=(32,)).on(_Frozen())
    (result,) = run_here(claim, seeds=[0])
    assert result.values["population finite"]


def test_a_run_needs_no_more_images_than_there_are() -> None:
    claim = replace(SMALL, images=10_000, steps=1, penalties=(), rates=(0.1,), sizes=(32,))
    values = claim.execute(Run("regularisation", "network", 0, DIGITS), lambda done, note: None)
    assert values["images"] == len(split(DIGITS, 0).train[1])
