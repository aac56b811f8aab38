import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from batchnorm.study import Conclusion, Result, Verdict
from batchnorm.study.apparatus.at_weights import MOST, AtWeights, finite
from batchnorm.study.apparatus.landscape import walk_along
from batchnorm.study.claims.smoothness import Smoothness
from batchnorm.study.subjects import Stack
from study.helpers import DIGITS, baseline_of, run_here, wave

SMALL = Smoothness(
    subject=Stack(((8, 2), (8, 1))),
    plain_rates=(0.1,),
    norm_rates=(0.3,),
    steps=30,
    every=15,
    walks=10,
    lengths=(0.1, 0.4),
    share=0.05,
)


def test_a_small_run_is_deterministic_and_measures_both_arms() -> None:
    results = run_here(SMALL, range(2))
    assert SMALL.execute(results[0].run, lambda done, note: None) == dict(results[0].values)
    for result in results:
        assert result.numbers("walked") == [0, 10, 20]
        assert all(value > 0 for name in ("loss range", "beta", "beta w2") for value in result.numbers(name))
        assert all(abs(value) <= 1 for value in result.numbers("cosine"))
        assert len(result.numbers("losses by length")) == 3 * 3
        changes = result.numbers("changes by length")
        assert [max(changes[place : place + 2]) for place in (0, 2, 4)] == result.numbers("gradient change")
    assert len(SMALL.conclude(results).charts) == 3


def test_without_batch_norm_in_either_arm_it_is_not_reproduced() -> None:
    removed = SMALL.without_effect()
    conclusion = replace(removed, share=0.0).conclude(run_here(removed, range(5)))
    assert conclusion.effects[0].interval.estimate == 1
    assert conclusion.verdict is Verdict.NOT_REPRODUCED


def test_weights_that_are_not_trained_are_not_walked() -> None:
    first, last = nn.Linear(3, 4), nn.Linear(4, 2)
    model = nn.Sequential(first.requires_grad_(False), last)
    function = AtWeights(model, torch.randn(8, 3), torch.arange(8) % 2, seed=5)
    assert list(function.weights()) == ["1.weight", "1.bias"]
    walk = walk_along(function, (0.1,))
    assert walk.weights == pytest.approx(float(last.weight.detach().square().sum()))


def test_a_walk_measures_what_a_quadratic_function_says() -> None:
    # L(w) = log(1 + exp(−2w)) of two classes: near w = 0 it curves by 1.
    model = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0], [0.0]]))
    function = AtWeights(model, torch.ones(4, 1), torch.zeros(4, dtype=torch.long), seed=0)
    loss, gradient = function.gradient(function.weights())
    assert loss == pytest.approx(math.log(2))
    assert gradient["weight"].flatten().tolist() == pytest.approx([-0.5, 0.5])
    walk = walk_along(function, (1e-2, 2e-2))
    # Its Hessian is p(1 − p)·(1, −1)(1, −1)ᵀ, whose largest eigenvalue is 2·¼.
    assert walk.beta == pytest.approx(0.5, rel=0.01)
    assert walk.gradient_change == pytest.approx(0.5 * 2e-2 * math.sqrt(0.5), rel=0.02)
    assert walk.highest == pytest.approx(math.log(2))
    assert walk.highest - walk.lowest == pytest.approx(2e-2 * 0.5, rel=0.02)
    assert walk.cosines == pytest.approx([1, 1])
    assert walk.weights == 0


def test_a_walk_leaves_weights_statistics_and_random_numbers_as_they_are() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    function = AtWeights(
        model, torch.randn(8, 3, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 2, seed=5
    )
    first, second = walk_along(function, (0.1,)), walk_along(function, (0.1,))
    assert first == second  # dropout drops the same each time
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_is_not_finite_counts_as_very_much() -> None:
    assert finite(math.nan) == finite(math.inf) == finite(1e35) == MOST
    assert finite(2.0) == 2.0


def _by_length(share: float) -> dict[str, list[float]]:
    """Of three walks of two lengths, the longer of which would give other ratios."""
    found = {"losses by length": [2.0, 2.0 - share, 9.0] * 3}
    return found | {name: [share, 9.0] * 3 for name in ("changes by length", "betas by length")}


def _concluded(
    loss: float = 0.1,
    gradient: float = 0.1,
    beta: float = 0.5,
    free: float = 0.5,
    noise: float = 0.0,
    best: float = 0.9,
    near: float = 0.5,
    seeds: int = 5,
) -> Conclusion:
    """Made-up results: each measure with batch norm as a share of that without, and so at the shorter length."""
    results = []
    for run in SMALL.plan(range(seeds), DIGITS):
        norm = run.arm.startswith("norm")
        jitter = math.exp(noise * wave(run.seed)) if norm else 1.0
        shares = {"loss range": loss, "gradient change": gradient, "beta": beta, "beta w2": free}
        values: dict[str, float | bool | list[float]] = {
            name: [3.0 * (share if norm else 1.0) * jitter] * 3 for name, share in shares.items()
        }
        values |= {"lowest": [1.0] * 3, "highest": [2.0] * 3, "walked": [0.0, 10.0, 20.0]}
        values |= {"cosine": [0.9 if norm else 0.4] * 3, "best": best, "diverged": False}
        values |= _by_length(near if norm else 1.0)
        results.append(Result(run, values | baseline_of(0.1)))
    return replace(SMALL, share=0.25).conclude(results)


def test_conclude_reaches_every_verdict() -> None:
    assert _concluded().verdict is Verdict.REPRODUCED
    for worse in (_concluded(loss=1.5), _concluded(gradient=0.95), _concluded(beta=2.0)):
        assert worse.verdict is Verdict.NOT_REPRODUCED
    assert _concluded(beta=0.9, noise=1.0).verdict is Verdict.INCONCLUSIVE
    nothing = _concluded(best=0.2)
    assert nothing.verdict is Verdict.INCONCLUSIVE
    assert "stayed at 20.0%" in nothing.reason


def test_what_decides_comes_first_and_disagreement_is_said() -> None:
    assert "range of the loss" in _concluded(loss=1.5).effects[0].name
    assert "effective β" in _concluded().effects[0].name  # the nearest to the limit
    apart = _concluded(free=1.5)
    assert apart.verdict is Verdict.REPRODUCED  # declared: it is no part of the rule
    assert "would be not reproduced, unlike β (reproduced)" in apart.reason
    assert "that is not shown" in apart.charts[1].title
    assert "would be reproduced, as β" in _concluded().reason


def test_titles_claim_no_more_than_the_verdict() -> None:
    assert "no range smaller by a tenth" in _concluded(loss=0.95).charts[0].title
    assert _concluded(best=0.2).charts[0].title == "The range of the loss along the gradient"
    assert _concluded(best=0.2).charts[1].title == "β during training, with and without batch norm"


def test_lengths_beyond_the_rate_without_batch_norm_are_told_apart() -> None:
    said = _concluded(loss=0.1, beta=0.4, near=0.5).findings[1]
    assert "The longest length is 4 times the rate chosen without batch norm and 1.33 times that with it" in said
    assert "the ratios are range of the loss 0.5 times (0.5 to 0.5)" in said
    assert said.endswith(
        "Longer ones make most of the ratio, in logarithms, of: range of the loss; change of the gradient ‖Δg‖."
    )
    assert "Longer ones" not in _concluded(near=0.1).findings[1]


def test_one_seed_has_no_bounds() -> None:
    assert "inf" not in " ".join(_concluded(seeds=1).findings)


def test_rates_that_both_arms_have_are_compared() -> None:
    both = replace(SMALL, plain_rates=(0.1, 0.3), share=0.25)
    results = []
    for run in both.plan(range(5), DIGITS):
        own = 0.5 if run.arm.startswith("norm") else 2.0 if run.arm.endswith("0.3") else 1.0
        values: dict[str, float | bool | list[float]] = {
            name: [own] * 3 for name in ("loss range", "gradient change", "beta", "beta w2", "cosine")
        }
        values |= {"lowest": [1.0] * 3, "highest": [2.0] * 3, "walked": [0.0, 10.0, 20.0]}
        values |= {"best": 0.8 if run.arm.endswith("0.3") else 0.9, "diverged": False} | _by_length(own)
        results.append(Result(run, values | baseline_of(0.1)))
    conclusion = both.conclude(results)
    assert conclusion.effects[0].interval.estimate == pytest.approx(0.5)  # each at its best rate
    (at_rate,) = [effect for effect in conclusion.effects if "both at rate 0.3" in effect.name]
    assert at_rate.interval.estimate == pytest.approx(0.25)
