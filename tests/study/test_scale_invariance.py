import pytest

from batchnorm.study import Result, Verdict
from batchnorm.study.claims.scale_invariance import ScaleInvariance
from study.helpers import DIGITS, run_here

SMALL = ScaleInvariance(exponents=(-3, -0.5, 0.5, 3), hidden=(30, 30), batch_size=60)


def test_a_small_run_reproduces_and_is_deterministic() -> None:
    results = run_here(SMALL)
    conclusion = SMALL.conclude(results)
    assert conclusion.verdict is Verdict.REPRODUCED
    assert conclusion.effects[1].interval.estimate == pytest.approx(-1, abs=1e-12)
    again = SMALL.execute(results[0].run, lambda done, note: None)
    assert again == dict(results[0].values)


def test_with_the_effect_removed_it_is_not_reproduced() -> None:
    removed = SMALL.without_effect()
    assert removed.conclude(run_here(removed)).verdict is Verdict.NOT_REPRODUCED


def test_a_fixed_eps_breaks_it_as_the_formula_says_and_a_following_one_does_not() -> None:
    results = {result.run.arm: result for result in run_here(SMALL, seeds=[0])}
    fixed = results["default eps"]
    assert fixed.numbers("middle")[0] > 0.1
    assert fixed.numbers("middle") == pytest.approx(fixed.numbers("predicted"), abs=1e-12)
    assert max(results["eps times a²"].numbers("output")) < 1e-13


def _conclude(deviation: float, statement: str = "weight") -> Verdict:
    claim = ScaleInvariance()
    count = len(claim.exponents)
    results = []
    for run in claim.plan(range(5), DIGITS):
        values: dict[str, float | list[float]] = {
            name: [1e-16] * count for name in ("output", "weight", "input", "middle", "predicted")
        }
        values |= {"gradient": [10.0**-exponent for exponent in claim.exponents], "flipped": 1e-16}
        if run.seed == 3 and run.arm == "negligible eps":
            # One exception, in one seed, refutes an identity.
            values[statement] = [1e-16] * (count - 1) + [deviation]
        results.append(Result(run, values))
    return claim.conclude(results).verdict


@pytest.mark.parametrize("statement", ["output", "weight", "input"])
def test_conclude_reaches_every_verdict_by_each_statement(statement: str) -> None:
    assert _conclude(5e-15, statement) is Verdict.REPRODUCED
    assert _conclude(1e-9, statement) is Verdict.INCONCLUSIVE  # more than rounding, less than an effect
    assert _conclude(1e-3, statement) is Verdict.NOT_REPRODUCED
    assert _conclude(1e30, statement) is Verdict.NOT_REPRODUCED
