import math
from collections.abc import Callable

import pytest

from batchnorm.study import Conclusion, Result, Verdict
from batchnorm.study.claims.gradient_explosion import GradientExplosion, predicted_growth
from study.helpers import run_here, wave

SMALL = GradientExplosion(
    width=500, depth=24, fit=(4, 20), batch_sizes=(16, 32), decisive=(32,), control_batch=32, tolerance=0.04
)


@pytest.mark.parametrize(("batch", "growth"), [(32, 1.234), (64, 1.222), (128, 1.216), (math.inf, 1.211)])
def test_the_formula_gives_the_theorems_numbers(batch: float, growth: float) -> None:
    assert predicted_growth(batch) == pytest.approx(growth, abs=5e-4)


def test_the_formula_tends_to_its_limit() -> None:
    assert predicted_growth(1e7) == pytest.approx(math.sqrt(math.pi / (math.pi - 1)), rel=1e-6)


def test_a_small_run_reproduces_and_is_deterministic() -> None:
    results = run_here(SMALL)
    assert SMALL.conclude(results).verdict is Verdict.REPRODUCED
    run = results[0].run
    assert SMALL.execute(run, lambda done, note: None) == dict(results[0].values)


def test_with_the_effect_removed_it_is_not_reproduced() -> None:
    plain = GradientExplosion(
        width=300,
        depth=24,
        fit=(4, 20),
        batch_sizes=(16, 32),
        decisive=(32,),
        control_batch=32,
        tolerance=0.04,
        norm=False,
    )
    assert plain.conclude(run_here(plain)).verdict is Verdict.NOT_REPRODUCED


def _conclude(growth: Callable[[int, int], float], control: Callable[[int], float]) -> Conclusion:
    claim = GradientExplosion()
    results = []
    for run in claim.plan(range(5), ""):
        if run.arm == "without batch norm":
            value = control(run.seed)
        else:
            batch = int(run.arm.rsplit(" ", 1)[1])
            value = growth(batch, run.seed)
        results.append(Result(run, {"log_growth": value, "log_norms": [0.0] * claim.depth}))
    return claim.conclude(results)


def _right(batch: int, seed: int) -> float:
    return math.log(predicted_growth(batch)) + 1e-3 * wave(seed)


def _flat(seed: int) -> float:
    return 1e-3 * wave(seed + 1)


def test_conclude_reaches_every_verdict() -> None:
    assert _conclude(_right, _flat).verdict is Verdict.REPRODUCED
    # Two per cent too high, surely: the theorem is refuted.
    assert _conclude(lambda b, s: _right(b, s) + 0.02, _flat).verdict is Verdict.NOT_REPRODUCED
    # Right at two batch sizes and wrong at the third.
    assert _conclude(lambda b, s: _right(b, s) - 0.02 * (b == 128), _flat).verdict is Verdict.NOT_REPRODUCED
    # Right on average, but so noisy that nothing is known.
    assert _conclude(lambda b, s: _right(b, s) + 0.05 * wave(s), _flat).verdict is Verdict.INCONCLUSIVE
    # Right, but the control without batch norm grows just as much: batch norm is not the cause.
    same = _conclude(_right, lambda s: math.log(1.22) + 0.05 * wave(s))
    assert same.verdict is Verdict.INCONCLUSIVE
    assert _conclude(_right, lambda s: 0.5 + 1e-3 * wave(s)).verdict is Verdict.NOT_REPRODUCED


def test_the_effect_that_decided_comes_first() -> None:
    assert _conclude(_right, _flat).effects[0].name.startswith("Growth of the gradient a layer at B = 128 (theorem")
    wrong = _conclude(lambda b, s: _right(b, s) - 0.02 * (b == 32), _flat)
    assert wrong.effects[0].name.startswith("Growth of the gradient a layer at B = 32 (theorem")
    below = _conclude(_right, lambda s: 0.2 + 1e-3 * wave(s))
    assert below.verdict is Verdict.NOT_REPRODUCED
    assert below.effects[0].name == "Growth of the gradient a layer at B = 128 over that without batch norm"


def test_the_chart_follows_the_rules_tolerance() -> None:
    follows = "The measured growth follows the theorem at every batch size"
    assert _conclude(_right, _flat).charts[0].title == follows
    # 1.5% off at a batch size that is no part of the verdict: reproduced, and not at every batch size.
    off = _conclude(lambda b, s: _right(b, s) + 0.015 * (b == 8), _flat)
    assert off.verdict is Verdict.REPRODUCED
    assert off.charts[0].title != follows
