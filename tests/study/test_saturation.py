import math

import pytest

from batchnorm.study import Conclusion, Result, Verdict
from batchnorm.study.claims.gradient_explosion import predicted_growth
from batchnorm.study.claims.saturation import Saturation
from batchnorm.study.gradients import wide_factor
from study.helpers import DIGITS, run_here, wave

SMALL = Saturation(depth=30, depths=(5,), scales=(0.25, 1.0, 4.0), width=60)


def _word(conclusion: Conclusion, statement: int) -> str:
    """What the conclusion says about a statement: holds, open or refuted."""
    part = next(part for part in conclusion.reason.rstrip(".").split("; ") if part.startswith(f"({statement})"))
    return part.rsplit(": ", 1)[1]


def test_a_small_run_is_deterministic_and_batch_norm_moderates_bad_weights() -> None:
    results = run_here(SMALL)
    conclusion = SMALL.conclude(results)
    assert _word(conclusion, 2) == "holds"
    assert _word(conclusion, 4) == "holds"
    # Gaussian Poincaré: with batch norm before it, no activation lets the gradient vanish.
    assert _word(conclusion, 5) == "refuted"
    assert conclusion.verdict is Verdict.NOT_REPRODUCED
    assert SMALL.execute(results[0].run, lambda done, note: None) == dict(results[0].values)


def test_with_the_effect_removed_nothing_is_moderated() -> None:
    removed = SMALL.without_effect()
    conclusion = removed.conclude(run_here(removed))
    assert conclusion.verdict is Verdict.NOT_REPRODUCED
    assert _word(conclusion, 2) == "holds"
    assert _word(conclusion, 3) == "refuted"
    assert _word(conclusion, 4) == "refuted"
    assert _word(conclusion, 5) == "holds"  # it is a plain net then


def test_the_wide_factor_is_the_theorems_for_relu_and_below_1_for_none() -> None:
    assert wide_factor("relu") == pytest.approx(predicted_growth(math.inf), rel=1e-4)
    assert all(wide_factor(activation) > 1 for activation in ("sigmoid", "tanh"))


def _usual(activation: str, norm: str, scale: float) -> float:
    """Logarithms of factors over all layers with which all five statements hold."""
    if norm == "batch norm":
        return -2.0 if activation == "sigmoid" else 0.5
    return {"sigmoid": -60.0, "tanh": -5.0, "relu": 0.0}[activation] + 40.0 * math.log(scale)


def _conclude(changed: dict[tuple[str, str, float], float], noise: float = 0.1) -> Conclusion:
    claim = Saturation()
    results = []
    for run in claim.plan(range(5), DIGITS):
        activation, norm = run.arm.split(", ")
        values = {}
        for name, scale in [(f"scale {s:g}", s) for s in claim.scales] + [(f"depth {d}", 1.0) for d in claim.depths]:
            total = changed.get((activation, norm, scale), _usual(activation, norm, scale)) + noise * wave(run.seed)
            values[name] = [0.0, total, *[0.0] * (claim.depth - 2)]
        results.append(Result(run, values))
    return claim.conclude(results)


def test_conclude_reaches_every_verdict() -> None:
    conclusion = _conclude({})
    assert conclusion.verdict is Verdict.REPRODUCED
    assert [_word(conclusion, statement) for statement in range(1, 6)] == ["holds"] * 5
    assert _conclude({("tanh", "no batch norm", 1.0): -math.log(2)}).verdict is Verdict.INCONCLUSIVE
    # On average as far from 1 with batch norm as without, or a little farther: the intervals hold 0.
    assert _conclude({("tanh", "batch norm", 1.0): 5.0}, noise=1.0).verdict is Verdict.INCONCLUSIVE
    assert _conclude({("tanh", "batch norm", 1.0): 5.1}, noise=1.0).verdict is Verdict.INCONCLUSIVE
    assert _conclude({("relu", "no batch norm", 4.0): math.log(2) - 0.02}, noise=1.0).verdict is Verdict.INCONCLUSIVE


@pytest.mark.parametrize(
    ("case", "value", "statement"),
    [
        (("tanh", "no batch norm", 1.0), 0.2, 1),
        (("relu", "no batch norm", 4.0), 0.2, 2),
        (("tanh", "batch norm", 1.0), 9.0, 3),
        (("relu", "batch norm", 0.25), -99.0, 4),
        (("sigmoid", "batch norm", 1.0), 0.0, 5),
    ],
)
def test_each_statement_alone_can_refute_it(case: tuple[str, str, float], value: float, statement: int) -> None:
    conclusion = _conclude({case: value})
    assert conclusion.verdict is Verdict.NOT_REPRODUCED
    assert _word(conclusion, statement) == "refuted"
