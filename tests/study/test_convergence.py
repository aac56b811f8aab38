from collections.abc import Callable

import pytest

from batchnorm.study import Conclusion, Result, Verdict
from batchnorm.study.claims.convergence import Convergence
from study.helpers import DIGITS, run_here

SMALL = Convergence(
    layers=((8, 2), (8, 1), (8, 1), (8, 1)),
    plain_rates=(1, 5),
    norm_rates=(1, 5),
    sigmoid_rates=(5,),
    adam_rates=(0.003,),
    steps=60,
    every=10,
    floor=0.2,
)


def test_with_the_effect_removed_it_is_not_reproduced() -> None:
    removed = SMALL.without_effect()
    conclusion = removed.conclude(run_here(removed))
    assert conclusion.verdict is Verdict.NOT_REPRODUCED
    # The arms are the same networks: not one step apart where both chose the same rate.
    assert conclusion.effects[0].interval.estimate >= 1


def test_a_small_run_is_deterministic_and_says_what_it_chose() -> None:
    results = run_here(SMALL, seeds=range(2))
    again = SMALL.execute(results[0].run, lambda done, note: None)
    assert again == dict(results[0].values)
    conclusion = SMALL.conclude(results)
    assert len(conclusion.charts) == 4
    assert conclusion.headline is not None
    assert conclusion.findings[0].startswith("Rates chosen on the validation split")


def _conclude(norm: Callable[[int], list[float]], plain_best: float = 0.9) -> Conclusion:
    """Made-up curves of ten looks: the plain net gets to its best at step 100, others as told."""
    claim = Convergence(steps=100)
    steps = [10.0 * (look + 1) for look in range(10)]
    results = []
    for run in claim.plan(range(5), DIGITS):
        if run.arm.startswith("norm ×"):
            curve = norm(run.seed)
        elif run.arm == "plain ×1":
            curve = [plain_best * (look + 1) / 10 for look in range(10)]
        else:
            curve = [0.1] * 10
        values = {"steps": steps, "validation": curve, "best": max(curve), "test": max(curve), "diverged": False}
        results.append(Result(run, values))
    return claim.conclude(results)


def _reaching(look: int) -> list[float]:
    """Gets to 95% at a look, and stays below the target before."""
    return [0.5] * (look - 1) + [0.95] * (11 - look)


def test_conclude_reaches_every_verdict() -> None:
    faster = _conclude(lambda seed: _reaching(3 + seed % 2))
    assert faster.verdict is Verdict.REPRODUCED
    assert faster.effects[0].interval.estimate == pytest.approx(0.3366, abs=1e-3)
    assert _conclude(lambda seed: _reaching(10)).verdict is Verdict.NOT_REPRODUCED
    assert _conclude(lambda seed: [0.5] * 10).verdict is Verdict.NOT_REPRODUCED
    assert _conclude(lambda seed: _reaching(1 if seed == 0 else 10)).verdict is Verdict.INCONCLUSIVE


def test_a_seed_that_never_gets_there_cannot_help_to_reproduce() -> None:
    conclusion = _conclude(lambda seed: [0.5] * 10 if seed == 0 else _reaching(1))
    assert conclusion.verdict is Verdict.INCONCLUSIVE
    assert "1 of 5 never got there: the ratio is a lower bound" in conclusion.effects[0].note


def test_a_plain_net_that_does_not_train_is_no_baseline() -> None:
    assert _conclude(lambda seed: _reaching(1), plain_best=0.2).verdict is Verdict.INCONCLUSIVE


def test_the_rate_is_chosen_by_validation_and_never_by_test() -> None:
    claim = Convergence(steps=20)
    results = []
    for run in claim.plan(range(2), DIGITS):
        best = {"plain ×1": 0.9, "plain ×2": 0.8}.get(run.arm, 0.1)
        test = 1.0 - best  # the worst on validation are the best on test
        values = {"steps": [10.0, 20.0], "validation": [0.0, best], "best": best, "test": test, "diverged": False}
        results.append(Result(run, values))
    found = claim.conclude(results).findings[0]
    assert "plain ×1, ×1;" in found
