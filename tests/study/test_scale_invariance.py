import math

import numpy as np
import pytest
import torch

from batchnorm.study import Conclusion, Result, Source, Verdict
from batchnorm.study.claims.scale_invariance import ScaleInvariance, _off, _predicted
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


def _alike() -> tuple[np.ndarray, np.ndarray]:
    """Images that are all the same but for the last of each class."""
    images, labels = np.ones((300, 5, 5)), np.arange(300) % 3
    images[-3:] = np.eye(5)
    return images, labels


def _one_pixel() -> tuple[np.ndarray, np.ndarray]:
    """Images of two kinds: what batch norm makes of them is two fixed values, whatever the weights."""
    images = np.zeros((400, 5, 5))
    images[5:200, 0, 0] = 1.0
    return images, np.arange(400) % 4


def test_a_gradient_that_is_0_but_for_rounding_leaves_it_open() -> None:
    results = run_here(SMALL, seeds=range(5), data=Source(f"{__name__}:_one_pixel"))
    assert SMALL.conclude(results).verdict is Verdict.INCONCLUSIVE


@pytest.mark.parametrize("effect", [True, False])
def test_a_batch_whose_images_are_all_the_same_leaves_it_open(effect: bool) -> None:
    claim = SMALL if effect else SMALL.without_effect()
    results = run_here(claim, seeds=range(5), data=Source(f"{__name__}:_alike"))
    conclusion = claim.conclude(results)
    assert conclusion.verdict is Verdict.INCONCLUSIVE
    assert conclusion.effects[0].name.startswith("Least of a unit's spread")
    assert "this is rounding" in conclusion.reason


def test_no_run_holds_a_number_that_is_none() -> None:
    for result in run_here(SMALL, seeds=[0], data=Source(f"{__name__}:_alike")):
        for value in result.values.values():
            assert np.isfinite(value).all()
    zero = torch.zeros(2, dtype=torch.float64)
    assert _off(zero, zero) == 0
    assert _off(zero + 1, zero) == 1e30
    assert _off(zero * math.nan, zero + 1) == 1e30
    assert _predicted(zero, 1e-5, 10.0) == 0


def _conclude(deviation: float, statement: str = "weight", *, spread: float = 0.5) -> Conclusion:
    claim = ScaleInvariance()
    count = len(claim.exponents)
    results = []
    for run in claim.plan(range(5), DIGITS):
        values: dict[str, float | list[float]] = {
            name: [1e-16] * count for name in ("output", "weight", "input", "middle", "predicted")
        }
        values |= {"gradient": [10.0**-exponent for exponent in claim.exponents], "flipped": 1e-16, "spread": spread}
        if run.seed == 3 and run.arm == "negligible eps":
            # One exception, in one seed, refutes an identity.
            values[statement] = [1e-16] * (count - 1) + [deviation]
            if deviation == 1e30:
                values["gradient"] = [1e30] * count
        results.append(Result(run, values))
    return claim.conclude(results)


@pytest.mark.parametrize("statement", ["output", "weight", "input"])
def test_conclude_reaches_every_verdict_by_each_statement(statement: str) -> None:
    assert _conclude(5e-15, statement).verdict is Verdict.REPRODUCED
    assert _conclude(1e-9, statement).verdict is Verdict.INCONCLUSIVE  # more than rounding, less than an effect
    assert _conclude(1e-3, statement).verdict is Verdict.NOT_REPRODUCED
    assert _conclude(1e30, statement).verdict is Verdict.NOT_REPRODUCED
    assert _conclude(1e-3, statement, spread=1e-12).verdict is Verdict.INCONCLUSIVE


def test_the_effect_that_decided_comes_first() -> None:
    assert "from the three identities" in _conclude(5e-15).effects[0].name
    assert _conclude(1e-3, "input").effects[0].name.startswith("Largest relative deviation of the input's gradient")
    assert _conclude(1e-9, "output").effects[0].name.startswith("Largest relative deviation of the output")
    nothing = _conclude(1e30)
    assert "weights' gradient not a number" in nothing.reason
    # An exponent of gradients that are no numbers is not given.
    assert not any("Exponent" in effect.name and "1e-300" in effect.name for effect in nothing.effects)


def test_what_is_said_of_the_other_arms_is_what_was_measured() -> None:
    removed = SMALL.without_effect()
    assert "should turn the sign" in " ".join(removed.conclude(run_here(removed)).findings)
    assert "A negative a turns the sign" in " ".join(SMALL.conclude(run_here(SMALL)).findings)
    assert "ε = 1e-5 the identity is exact to rounding" in _conclude(5e-15).findings[0]
