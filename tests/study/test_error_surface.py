from collections.abc import Mapping

import numpy as np
import pytest

from batchnorm.report.chart import Contours, Panels
from batchnorm.study import Conclusion, Result, Verdict
from batchnorm.study.apparatus.descent import curvatures_of, descend, detour, steps_to, turns
from batchnorm.study.claims.error_surface import ErrorSurface
from study.helpers import run_here

CLAIM = ErrorSurface()


def test_it_reproduces_and_is_deterministic() -> None:
    results = run_here(CLAIM, range(100, 105), data=None)
    conclusion = CLAIM.conclude(results)
    assert conclusion.verdict is Verdict.REPRODUCED
    again = CLAIM.execute(results[0].run, lambda done, note: None)
    assert again == dict(results[0].values)
    panels = conclusion.charts[0]
    assert isinstance(panels, Panels)
    for chart in panels.charts:
        assert isinstance(chart, Contours)
        # The way starts on the outermost line and both axes cover the same length.
        assert np.ptp(chart.x) == pytest.approx(np.ptp(chart.y))
        way = chart.paths[0]
        assert chart.x[0] < min(way.x)
        assert max(way.x) < chart.x[-1]


def test_with_the_effect_removed_it_is_not_reproduced() -> None:
    removed = CLAIM.without_effect()
    assert removed.conclude(run_here(removed, data=None)).verdict is Verdict.NOT_REPRODUCED


def test_two_standardised_features_have_the_condition_number_of_their_correlation() -> None:
    for result in run_here(CLAIM, [0], data=None):
        correlation = abs(result.number("two/correlation"))
        expected = (1 + correlation) / (1 - correlation)
        standard = result.run.arm == "standardised"
        assert (result.number("two/condition") == pytest.approx(expected, rel=1e-6)) is standard


@pytest.mark.parametrize("scale", [1.0, 3.0, 30.0])
def test_the_calculated_steps_are_those_of_a_descent_that_is_run(scale: float) -> None:
    generator = np.random.default_rng(0)
    design = generator.standard_normal((50, 4)) * np.array([1, 1, 2, scale])
    offset = generator.standard_normal(4)
    curvatures, directions = curvatures_of(design)
    way = descend(design.T @ design / 50, offset, 1e-3)
    assert steps_to(curvatures, directions @ offset, 1e-3) == len(way) - 1


def test_turns_and_detour_of_a_known_way() -> None:
    way = [np.array(point) for point in ((0.0, 0.0), (1.0, 1.0), (2.0, 0.0), (1.0, 0.5))]
    assert turns(way) == 1  # a right angle is none
    assert detour(way) == pytest.approx((2 * 2**0.5 + 1.25**0.5) / 1.25**0.5)


def _conclude(ratios: Mapping[str, float] = {}, noise: float = 0.0, raw_condition: float = 30.0) -> Conclusion:
    usual: dict[str, float] = {"two/steps": 25.0, "two/detour": 4.0, "wine/condition": 1e6, "wine/steps": 1e6} | ratios
    results = []
    for run in CLAIM.plan(range(5), None):
        raw = run.arm == "as measured"
        values: dict[str, float | list[float]] = {
            name: 2.0 * (ratio * (1 + noise * (run.seed - 2)) if raw else 1) for name, ratio in usual.items()
        }
        values |= {"two/condition": raw_condition if raw else 1.5, "two/correlation": 0.2, "two/turns": 1}
        values |= {"breast cancer/condition": 9.0, "breast cancer/steps": 9.0}
        values |= {"two/hessian": [1.0, 0.0, 0.0, 2.0], "two/minimum": [0.0, 0.0], "two/way": [1.0, 1.0, 0.0, 0.0]}
        results.append(Result(run, values))
    return CLAIM.conclude(results)


def test_conclude_reaches_every_verdict_by_each_ratio() -> None:
    assert _conclude().verdict is Verdict.REPRODUCED
    for name, least in {"two/steps": 2, "two/detour": 1, "wine/condition": 10, "wine/steps": 10}.items():
        assert _conclude({name: 0.9 * least}).verdict is Verdict.NOT_REPRODUCED
        assert _conclude({name: 1.05 * least}, noise=0.2).verdict is Verdict.INCONCLUSIVE


def test_the_effect_that_decided_comes_first() -> None:
    assert _conclude().effects[0].name.startswith("Steps of gradient descent, two features")
    assert _conclude({"wine/condition": 9.0}).effects[0].name.startswith("Condition number, whole wine table")
    assert _conclude({"wine/steps": 9.0}).effects[0].name.startswith("Steps of gradient descent, whole wine table")
    wide = _conclude({"two/detour": 1.05}, noise=0.2)
    assert wide.effects[0].name.startswith("Way of gradient descent")


def test_a_valley_is_named_so_only_where_it_is_narrow() -> None:
    assert "narrow valley" in _conclude().charts[0].title
    assert "narrow valley" not in _conclude(raw_condition=4.0).charts[0].title
