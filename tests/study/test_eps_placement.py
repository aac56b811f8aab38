import math

import pytest

from batchnorm.study import Result, Verdict
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
) -> Verdict:
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
    return claim.conclude(results).verdict


def test_conclude_reaches_every_verdict() -> None:
    assert _conclude(0.1, 1.4) is Verdict.REPRODUCED
    assert _conclude(0.005, 1.4) is Verdict.NOT_REPRODUCED  # eps may stand anywhere
    assert _conclude(0.1, 0.005) is Verdict.NOT_REPRODUCED  # layer norm is batch norm
    assert _conclude(0.02, 1.4, noise=0.02) is Verdict.INCONCLUSIVE  # too noisy
    assert _conclude(0.1, 1.4, at_one=0.02) is Verdict.INCONCLUSIVE  # it does not vanish where it should
    assert _conclude(0.1, 1.4, error=1e-6) is Verdict.INCONCLUSIVE  # the formula is wrong
    assert _conclude(0.1, 1.4, last_at_one=0.005) is Verdict.INCONCLUSIVE
