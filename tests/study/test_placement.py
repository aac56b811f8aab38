import itertools

import pytest
import torch

from batchnorm.study import Result, Verdict
from batchnorm.study.claims.placement import Placement, two_one_sided
from batchnorm.study.data import split
from batchnorm.study.statistics import interval
from batchnorm.study.training import Recipe, train
from study.helpers import DIGITS, run_here, wave

SMALL = Placement(hidden=(24,), relu_rates=(0.1, 0.4), sigmoid_rates=(0.1, 1.0), steps=70, every=35)


def test_a_small_run_is_deterministic_and_trains_both_orders() -> None:
    results = run_here(SMALL, seeds=range(2))
    assert SMALL.execute(results[0].run, lambda done, note: None) == dict(results[0].values)
    conclusion = SMALL.conclude(results)
    assert len(conclusion.charts) == 2
    by_arm = {result.run.arm: result for result in results if result.run.seed == 0}
    # The orders are different networks, and both learn.
    for activation in ("relu", "sigmoid"):
        before, after = (by_arm[f"{activation} {order} 0.1"] for order in ("before", "after"))
        assert before.values["validation"] != after.values["validation"]
        assert min(before.number("best"), after.number("best")) > 0.5


def test_with_the_effect_removed_it_is_not_reproduced() -> None:
    # A linear network against one that is not: the larger of the two differences is points, not tenths.
    removed = SMALL.without_effect()
    conclusion = removed.conclude(run_here(removed, seeds=range(5)))
    assert conclusion.verdict is not Verdict.REPRODUCED
    assert abs(conclusion.effects[0].interval.estimate) > 1


def _conclude(relu: float, sigmoid: float, noise: float = 0.002, trained: float = 0.95) -> Verdict:
    claim = Placement(relu_rates=(0.1,), sigmoid_rates=(0.1,))
    results = []
    for run in claim.plan(range(5), DIGITS):
        activation, order, _ = run.arm.split()
        gap = {"relu": relu, "sigmoid": sigmoid}[activation] + noise * wave(run.seed) if order == "after" else 0.0
        values = {"best": trained, "test": 0.94 + gap, "steps": [1.0], "validation": [trained]}
        results.append(Result(run, values))
    return claim.conclude(results).verdict


def test_conclude_reaches_every_verdict() -> None:
    assert _conclude(0.0, 0.001) is Verdict.REPRODUCED
    assert _conclude(0.0, 0.03) is Verdict.NOT_REPRODUCED
    assert _conclude(-0.03, 0.0) is Verdict.NOT_REPRODUCED
    assert _conclude(0.0, 0.009, noise=0.02) is Verdict.INCONCLUSIVE  # too noisy to tell
    assert _conclude(0.0, 0.0, trained=0.2) is Verdict.INCONCLUSIVE  # equal, because neither learnt anything


def test_a_wide_interval_around_zero_is_no_equivalence() -> None:
    assert _conclude(0.0, 0.0, noise=0.05) is Verdict.INCONCLUSIVE


def test_the_equivalence_test_uses_the_90_percent_interval() -> None:
    values = [0.1, -0.3, 0.4, 0.2, 0.0]
    span = two_one_sided(interval(values))
    # t(4, 0.95) = 2.1318, by the tables; s = 0.25884, n = 5.
    assert span.high - span.estimate == pytest.approx(2.1318 * 0.258844 / 5**0.5, rel=1e-4)
    assert span.low + span.high == pytest.approx(2 * span.estimate)


def test_a_rate_that_decays_starts_whole_and_falls_in_a_straight_line() -> None:
    def moves(decay: bool) -> list[float]:
        # So small a rate that both runs have the same gradients: what they move apart is the rate alone.
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        path = [model[1].bias.detach().clone()]
        recipe = Recipe(1e-4, steps=4, every=1, decay=decay)
        parts = split(DIGITS, 0)
        train(
            model,
            parts,
            recipe,
            seed=0,
            report=lambda done, note: None,
            watch=lambda step: path.append(model[1].bias.detach().clone()),
        )
        return [float((after - before).abs().sum()) for before, after in itertools.pairwise(path)]

    shares = [slower / whole for slower, whole in zip(moves(True), moves(False), strict=True)]
    assert shares == pytest.approx([1, 0.75, 0.5, 0.25], abs=0.02)
