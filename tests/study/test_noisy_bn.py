from dataclasses import replace

import pytest
import torch
from torch import nn

from batchnorm.study import Conclusion, Result, Verdict
from batchnorm.study.apparatus.noise import Drift, Noise
from batchnorm.study.claims.noisy_bn import NoisyBatchNorm
from batchnorm.study.subjects import Stack
from study.helpers import DIGITS, baseline_of, run_here, wave

SMALL = NoisyBatchNorm(
    subject=Stack(((8, 2), (8, 1))),
    plain_rates=(0.1,),
    norm_rates=(0.3,),
    steps=22,
    every=10,
    probes=40,
    share=0.0,
)


def test_a_small_run_is_deterministic_and_the_noise_moves_distributions() -> None:
    results = {result.run.arm.split()[0]: result for result in run_here(SMALL, [0])}
    again = SMALL.execute(results["noisy"].run, lambda done, note: None)
    assert again == dict(results["noisy"].values)
    assert results["noisy"].numbers("looked") == [0, 10, 20]
    for name in ("means by update", "deviations by update"):
        moves = {arm: sum(result.numbers(name)) for arm, result in results.items()}
        assert moves["noisy"] > 3 * max(moves["norm"], moves["plain"])
    assert len(SMALL.conclude(list(results.values())).charts) == 3


def test_noise_without_batch_norm_is_not_reproduced() -> None:
    removed = replace(SMALL, steps=44).without_effect()
    conclusion = removed.conclude(run_here(removed, range(5)))
    assert conclusion.verdict is Verdict.NOT_REPRODUCED
    assert conclusion.effects[0].interval.estimate < -SMALL.margin


def test_noise_has_the_stated_moments_and_is_gone_in_evaluation() -> None:
    layer = nn.Sequential(nn.Identity())
    Noise(shift=0.5, scale=0.25, example=0.1).behind(layer, ["0"])
    given = torch.stack([torch.full((50, 2000), value) for value in (-1.0, 1.0)], 2)  # (example, channel, place)
    state = torch.random.get_rng_state()
    noisy = layer(given)
    torch.random.set_rng_state(state)
    assert torch.equal(layer(given), noisy)  # torch's own numbers decide
    assert not torch.equal(layer(given), noisy)  # and the next pass draws others
    shift, scale = noisy.mean(2), noisy.diff(dim=2).squeeze(2) / 2
    for found, middle, width in ((shift, 0.0, 0.5), (scale, 1.0, 0.25)):
        # Channels differ by the one width, the examples of a channel by the other.
        assert float(found.mean()) == pytest.approx(middle, abs=0.03)
        assert float(found.mean(0).std()) == pytest.approx(width / 3**0.5, rel=0.05)
        assert float(found.std(0).mean()) == pytest.approx(0.1 / 3**0.5, rel=0.05)
        assert float((found - middle).abs().max()) <= width + 0.1 + 1e-6
    assert torch.equal(layer.eval()(given), given)


def test_drift_is_measured_around_an_update_and_leaves_the_model_alone() -> None:
    norm = nn.BatchNorm1d(4)
    model = nn.Sequential(nn.Linear(3, 4), norm, nn.Linear(4, 2))
    images = torch.randn(30, 3)
    drift = Drift(model, ["1"], images, every=3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    for step in range(1, 6):
        drift.before(step, images, torch.zeros(30))
        if step == 1:
            with torch.no_grad():
                norm.bias += 2.0
        if step == 4:
            with torch.no_grad():
                norm.weight *= 3.0
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(norm.state_dict()["running_mean"], before["1.running_mean"])
    assert not any(module._forward_hooks for module in model.modules())
    update = drift.of_updates()
    assert update.steps == [0, 3]
    # The layer gives standard deviation 1: a bias of 2 moves the mean by 2 of it, a gamma of 3 the deviation by log 3.
    assert update.means == pytest.approx([2.0, 0.0], abs=1e-4)
    assert update.deviations == pytest.approx([0.0, 1.0986], abs=1e-4)
    period = drift.of_periods()
    assert period.steps == [0]
    assert period.means == pytest.approx([2.0], abs=1e-4)


def test_dropout_is_the_same_at_each_look_and_noise_is_not() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.BatchNorm1d(4))
    images = torch.randn(30, 4)
    for noisy in (False, True):
        if noisy:
            Noise(0.5, 0.25, 0.1).behind(model, ["1", "3"])
        drift = Drift(model, ["1", "3"], images, every=3)
        for step in (1, 2):
            drift.before(step, images, torch.zeros(30))
        (moved,) = drift.of_updates().means
        assert moved > 0.1 if noisy else moved == 0


def _concluded(
    equal: float = 0.0,
    better: float = 0.03,
    *,
    moved: float = 5.0,
    noise: float = 0.001,
    best: float = 0.9,
    guessing: float = 0.1,
    jump: float = 0.0,
    seeds: int = 5,
    looked: bool = True,
) -> Conclusion:
    """Made-up results: the accuracy with noise against batch norm and against none, and its moves against none."""
    claim = replace(SMALL, share=0.25)
    results = []
    for run in claim.plan(range(seeds), DIGITS):
        arm = run.arm.split()[0]
        test = 0.9 + {"noisy": noise * wave(run.seed), "norm": -equal, "plain": -better}[arm]
        values: dict[str, float | bool | list[float]] = {
            name: [0.1 * (moved * (1 + jump * wave(run.seed)) if arm == "noisy" else 1.0)] * (2 * looked)
            for name in ("means by update", "deviations by update", "means by period", "deviations by period")
        }
        values |= {"test": test, "best": best, "diverged": False, "looked": [0.0, 10.0]}
        values |= {"steps": [10.0, 20.0], "validation": [best / 2, best]}
        results.append(Result(run, values | baseline_of(guessing)))
    return claim.conclude(results)


def test_conclude_reaches_every_verdict() -> None:
    assert _concluded().verdict is Verdict.REPRODUCED
    assert _concluded(equal=-0.03).verdict is Verdict.NOT_REPRODUCED
    assert _concluded(better=-0.01).verdict is Verdict.NOT_REPRODUCED
    assert _concluded(noise=0.02).verdict is Verdict.INCONCLUSIVE
    assert _concluded(best=0.3).verdict is Verdict.INCONCLUSIVE
    # Half a point is more than a twentieth of what guessing leaves.
    assert _concluded(equal=-0.005, guessing=0.95, best=0.99).verdict is Verdict.NOT_REPRODUCED


def test_without_instability_nothing_was_tried() -> None:
    calm = _concluded(moved=1.0)
    assert calm.verdict is Verdict.INCONCLUSIVE
    assert "did not make the distributions less stable" in calm.reason
    assert "Move of a channel's mean" in calm.effects[0].name
    assert "farther" not in calm.charts[1].title
    undecided = _concluded(moved=1.2, jump=0.9)
    assert undecided.verdict is Verdict.INCONCLUSIVE
    assert "did not" not in undecided.reason
    assert "less stable than without batch norm is not shown" in undecided.reason


def test_what_was_not_looked_at_has_no_ratio() -> None:
    nothing = _concluded(looked=False)
    assert nothing.verdict is Verdict.INCONCLUSIVE
    assert "times" not in nothing.reason + " ".join(nothing.findings)
    assert len(nothing.charts) == 2


def test_moves_are_told_in_per_cent_and_one_seed_has_no_bounds() -> None:
    (moves,) = [finding for finding in _concluded(moved=0.01).findings if "per cent" in finding]
    assert "noisy batch norm 0.001 standard deviations, and 0.1%" in moves
    assert "mostly the noise" not in moves
    assert "mostly the noise" in " ".join(_concluded().findings)
    alone = _concluded(seeds=1)
    assert "inf" not in alone.reason + " ".join(alone.findings)
    assert "−∞ to +∞" in alone.reason


def test_the_effect_that_decides_comes_first() -> None:
    assert "minus batch norm" in _concluded().effects[0].name
    assert "minus none" in _concluded(better=-0.01).effects[0].name
