import copy
import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from batchnorm import BatchNorm1d
from batchnorm.errors import ArgumentError
from batchnorm.report.chart import Curves, Panels
from batchnorm.study import Conclusion, Result, Run, Verdict
from batchnorm.study.apparatus.precise import caught_up, precise
from batchnorm.study.claims.ema_vs_population import EmaVersusPopulation
from batchnorm.study.data import split
from batchnorm.study.subjects import Own, Stack
from batchnorm.study.training import Recipe, accuracy, train
from study.helpers import DIGITS, baseline_of, run_here, wave

SMALL = EmaVersusPopulation(
    # Few looks with several numbers of images are noisy, so more is allowed.
    subject=Stack(((8, 2), (16, 2))),
    rates=(0.05, 1.0),
    steps=60,
    every=3,
    samples=500,
    counts=(32, 2000),
    rare=10,
    tolerance=2.0,
)
HIGH = replace(SMALL, rates=(1.0,))


def test_a_small_run_reproduces_and_the_control_does_not() -> None:
    results = run_here(HIGH, seeds=range(5))
    assert HIGH.conclude(results).verdict is Verdict.REPRODUCED
    removed = HIGH.without_effect()
    control = run_here(removed, seeds=range(5))
    conclusion = removed.conclude(control)
    assert conclusion.verdict is Verdict.NOT_REPRODUCED
    assert conclusion.effects[0].interval.high < HIGH.margin
    for with_lag, without in zip(results, control, strict=True):
        # The looks leave the training as it is, whatever they look at.
        assert with_lag.values["population"] == without.values["population"]
        assert with_lag.values["running"] != without.values["running"]


def test_a_run_is_deterministic_and_leaves_the_generator_as_it_was() -> None:
    run = Run("ema-vs-population", "0.05", 3, DIGITS)
    short = replace(SMALL, steps=9, rare=3)
    before = torch.random.get_rng_state()
    first = short.execute(run, lambda done, note: None)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(3)
    assert short.execute(run, lambda done, note: None) == first
    torch.random.set_rng_state(before)
    assert first["counts"] == [32.0, 500.0, 1078.0]  # no more than there are to train on


def test_copies_are_looked_at_and_the_model_is_left_alone() -> None:
    parts = split(DIGITS, 0)
    model = nn.Sequential(nn.Dropout(0.1), Stack(((4, 2),)).build(parts, 0))
    train(model, parts, Recipe(0.1, steps=30, every=30), seed=0, report=lambda done, note: None)
    images = -parts.train[0][:300]  # far from what the layer has seen
    kept = copy.deepcopy(model.state_dict())
    state = torch.random.get_rng_state()
    found = {precise(model, images, parts.validation), caught_up(model, images, 60, parts.validation)}
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert accuracy(model, *parts.validation) not in found
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    assert precise(model, images, parts.validation) == 0.0  # as training itself counts it


@pytest.mark.parametrize("momentum", [0.001, 0.1, None])
def test_the_control_has_no_lag_whatever_the_momentum_and_however_few_images(momentum: float | None) -> None:
    images = torch.randn(120, 1, generator=torch.Generator().manual_seed(0))
    labels = (images[:, 0] > 0).long()
    # Right only with these images' own statistics: what was kept before calls all of them the same class.
    norm, last = nn.BatchNorm1d(1, momentum=momentum), nn.Linear(1, 2)
    with torch.no_grad():
        last.weight.copy_(torch.tensor([[-1.0], [1.0]]))
        last.bias.zero_()
        norm(images - 100.0)
    kept = copy.deepcopy(norm.state_dict())
    model = nn.Sequential(norm, last).train()
    assert caught_up(model, images, 60, (images, labels)) > 0.9
    assert norm.momentum == momentum
    assert all(torch.equal(value, kept[name]) for name, value in norm.state_dict().items())
    norm.momentum = 0.0  # a network that keeps its statistics keeps them here too
    norm.running_mean = torch.full((1,), -100.0)
    assert caught_up(model, images, 60, (images, labels)) == float(labels.double().mean())


def _forgetful() -> nn.Module:
    return nn.Sequential(nn.Flatten(), BatchNorm1d(64, track_running_stats=False), nn.Linear(64, 10))


def test_a_network_without_running_statistics_is_refused() -> None:
    with pytest.raises(ArgumentError, match="no batch norm whose statistics"):
        SMALL.on(Own(f"{__name__}:_forgetful")).check(split(DIGITS, 0))


def _concluded(
    *,
    jump: float = 0.06,
    steady: float = 0.01,
    noise: float = 0.0,
    added: float = 0.0,
    added_noise: float = 0.0,
    best: float = 0.9,
    diverged: bool = False,
    images: float = 3000.0,
) -> Conclusion:
    """Made-up results: curves that go up and down by so much, and what more images add."""
    claim = EmaVersusPopulation()
    results = []
    for run in claim.plan(range(5), DIGITS):
        ups = [float(place % 2) for place in range(30)]
        high = run.arm == "0.4"
        up = jump * (1 + noise * wave(run.seed)) if high else steady
        more = (added + added_noise * wave(run.seed)) * high
        values: dict[str, float | list[float]] = {
            "steps": [10.0 * (place + 1) for place in range(30)],
            "running": [0.5] * 10 + [0.8 + up * place for place in ups[10:]],
            "population": [0.9 - steady * place for place in ups],
            "best": best,
            "counts": [32.0, 100.0, 316.0, min(1000.0, images - 1), images],
            "by count": [0.85, 0.88, 0.89, 0.9, 0.9 + more],
            "diverged": diverged,
        }
        results.append(Result(run, values | baseline_of(0.1)))
    return claim.conclude(results)


def test_conclude_reaches_every_verdict() -> None:
    assert _concluded().verdict is Verdict.REPRODUCED
    assert _concluded(jump=0.01).verdict is Verdict.NOT_REPRODUCED
    assert _concluded(added=0.02).verdict is Verdict.NOT_REPRODUCED
    assert _concluded(jump=0.0125, noise=0.4).verdict is Verdict.INCONCLUSIVE
    assert _concluded(added=0.005, added_noise=0.01).verdict is Verdict.INCONCLUSIVE
    assert _concluded(best=0.2).verdict is Verdict.INCONCLUSIVE
    assert "a network stayed at 20.0%" in _concluded(best=0.2).reason
    assert "stopped being finite" in _concluded(diverged=True).reason
    assert _concluded(diverged=True).verdict is Verdict.INCONCLUSIVE
    assert _concluded(jump=0.0, steady=0.0).verdict is Verdict.NOT_REPRODUCED  # curves that do not move at all


def test_the_effect_that_decides_comes_first_and_numbers_are_measured() -> None:
    conclusion = _concluded()
    assert conclusion.effects[0].name.endswith("running averages over population, rate 0.4")
    assert conclusion.effects[0].interval.estimate == pytest.approx(6)
    # The jump at the end of the first third is none of it.
    assert "by 6.0 points with running averages and by 1.0 with statistics of 1,000 images" in conclusion.reason
    uneven = _concluded(noise=0.9)
    told = re.search(r"by ([\d.]+) points .* and by ([\d.]+) with .* ([\d.]+) times as much", uneven.reason)
    assert told is not None
    running, population, ratio = map(float, told.groups())
    assert running / population == pytest.approx(ratio, rel=0.02)  # what a reader divides
    refuted = _concluded(added=0.02)
    assert refuted.effects[0].name.endswith("statistics of 3,000 images minus 1,000")
    assert refuted.effects[0].interval.estimate == pytest.approx(2)
    assert "At rate 0.4 one look shows up to 40.0 points more" in conclusion.findings[2]
    assert "85.0% with 32, 88.0% with 100" in conclusion.findings[-1]
    curves, jumps, counts = conclusion.charts
    assert isinstance(curves, Panels)
    assert [chart.title for chart in curves.charts] == ["Learning rate 0.02", "Learning rate 0.1", "Learning rate 0.4"]
    assert isinstance(jumps, Curves)
    assert jumps.series[0].y == pytest.approx([1.0, 1.0, 6.0])
    assert isinstance(counts, Curves)
    assert counts.series[0].y == pytest.approx([-5.0, -2.0, -1.0, 0.0, 0.0])


def test_of_few_images_the_first_statement_decides_alone() -> None:
    few = _concluded(added=0.02, images=600.0)
    assert few.verdict is Verdict.REPRODUCED
    assert "What more than 1,000 images add is not tested" in few.reason
    assert "add +" not in few.reason
    assert not any("minus" in effect.name and "statistics of" in effect.name for effect in few.effects)
    assert _concluded(jump=0.01, images=600.0).verdict is Verdict.NOT_REPRODUCED
    assert _concluded(added=0.02, images=1200.0).verdict is Verdict.REPRODUCED
    assert _concluded(added=0.02, images=2000.0).verdict is Verdict.NOT_REPRODUCED
    assert _concluded(best=0.2, images=600.0).verdict is Verdict.INCONCLUSIVE


def test_a_network_that_is_better_with_running_averages_is_not_said_to_be_worse() -> None:
    better = _concluded(jump=-0.01, steady=0.0)
    assert "one look shows up to" in better.findings[2]
    claim = EmaVersusPopulation()
    values: dict[str, float | list[float]] = {"steps": [10.0, 20.0], "running": [0.9, 0.9], "population": [0.8, 0.8]}
    values |= {"counts": [32.0], "by count": [0.8], "best": 0.9, "diverged": False}
    runs = {0: Result(Run("ema-vs-population", "0.4", 0, DIGITS), values | baseline_of(0.1))}
    assert "no look shows more" in claim._findings({0.4: runs})[0]
