import math

import pytest

from batchnorm.study import Conclusion, Result, Verdict
from batchnorm.study.claims.eps_placement import EpsPlacement
from study.helpers import run_here

SMALL = EpsPlacement(scales=(1e-6, 1e-3, 1.0, 1e3))


def test_a_small_run_reproduces_and_is_deterministic() -> None:
    results = run_here(SMALL, data=None)
    assert SMALL.conclude(results).verdict is Verdict.REPRODUCED
    again = SMALL.execute(results[0].run, lambda done, note: None)
    assert again == dict(results[0].values)


def test_with_the_effect_removed_it_is_not_reproduced() -> None:
    removed = SMALL.without_effect()
    assert removed.conclude(run_here(removed, data=None)).verdict is Verdict.NOT_REPRODUCED


def test_at_the_root_of_eps_the_two_forms_differ_by_the_root_of_2() -> None:
    claim = EpsPlacement(scales=(math.sqrt(1e-5),))
    values = run_here(claim, seeds=[0], data=None)[0].values
    assert values["spread"] == pytest.approx([math.sqrt(0.5)], rel=1e-9)
    assert values["outside"] == pytest.approx([math.sqrt(2e-5) / (math.sqrt(1e-5) + 1e-5) - 1], rel=1e-9)


def test_a_constant_feature_has_a_gradient_only_with_eps_inside() -> None:
    values = run_here(SMALL, seeds=[0], data=None)[0].values
    assert values["layer finite"] is True
    assert values["outside finite"] is False


def _conclude(
    outside: float,
    last: float,
    noise: float = 0.001,
    at_one: float = 1e-6,
    error: float = 1e-15,
    last_at_one: float = 1.0,
) -> Conclusion:
    claim = EpsPlacement(scales=(1e-3, 1.0))
    results = []
    for run in claim.plan(range(5), None):
        shift = noise * (run.seed - 2)
        values = {
            "raw/outside": outside + shift,
            "raw/last": last + shift,
            "layer finite": True,
            "outside finite": False,
            "deviations": [0.01, 1.0],
            "by feature": [outside, outside],
            "outside": [0.5, at_one],
            "last": [1.0, last_at_one],
            "spread": [0.5, 1.0],
            "spread outside": [0.9, 1.0],
            "error": [1e-16, error],
        }
        results.append(Result(run, values))
    return claim.conclude(results)


def test_conclude_reaches_every_verdict() -> None:
    assert _conclude(0.1, 1.4).verdict is Verdict.REPRODUCED
    assert _conclude(0.005, 1.4).verdict is Verdict.NOT_REPRODUCED  # eps may stand anywhere
    assert _conclude(0.1, 0.005).verdict is Verdict.NOT_REPRODUCED  # layer norm is batch norm
    assert _conclude(0.02, 1.4, noise=0.02).verdict is Verdict.INCONCLUSIVE  # too noisy
    assert _conclude(0.1, 1.4, at_one=0.02).verdict is Verdict.INCONCLUSIVE  # it does not vanish where it should
    assert _conclude(0.1, 1.4, error=1e-6).verdict is Verdict.INCONCLUSIVE  # the formula is wrong
    assert _conclude(0.1, 1.4, last_at_one=0.005).verdict is Verdict.INCONCLUSIVE


def test_the_effect_that_decided_comes_first() -> None:
    raw = "features as measured"
    assert _conclude(0.1, 1.4).effects[0].name == f"Difference to batch norm, ε outside the root, {raw}"
    assert _conclude(0.1, 0.005).effects[0].name == f"Difference to batch norm, last axis, {raw}"
    assert _conclude(0.1, 1.4, at_one=0.02).effects[0].name.endswith("ε outside the root, scale 1")
    assert _conclude(0.1, 1.4, last_at_one=0.005).effects[0].name.endswith("last axis, scale 1")
    assert _conclude(0.1, 1.4, error=1e-6).effects[0].name.startswith("Largest error of the formula")


def test_far_earlier_is_said_only_of_forms_that_are_far_apart() -> None:
    conclusion = SMALL.conclude(run_here(SMALL, data=None))
    assert conclusion.charts[0].title.startswith("Small features: ε in the root holds them down far earlier")
    # 90% of difference, and yet both bring the spread below a half at the same one of the scales.
    claim = EpsPlacement(scales=(1e-6, 1.0))
    same = claim.conclude(run_here(claim, data=None))
    assert same.charts[0].title.startswith("The spread of the output")
