import math

import pytest
import torch
from torch import nn

from batchnorm.study import Conclusion, Result, Verdict
from batchnorm.study.apparatus.gradients import log_norms, lost, wide_factor
from batchnorm.study.claims.gradient_explosion import predicted_growth
from batchnorm.study.claims.saturation import Saturation
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


def test_the_effect_that_decided_comes_first() -> None:
    assert _conclude({("tanh", "batch norm", 1.0): 9.0}).effects[0].name.endswith("tanh, weights ×1")
    assert _conclude({("sigmoid", "batch norm", 1.0): 0.0}).effects[0].name.endswith("sigmoid, batch norm, weights ×1")


def test_gradients_that_are_no_numbers_or_vanish_at_once_leave_it_open() -> None:
    labels = torch.tensor([0, 1])
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    for module in (model[0], model[2]):
        module.weight.data.fill_(0.5)  # so that no unit is dead
    usual = log_norms(model, torch.ones(2, 2, dtype=torch.float64), labels)
    assert not lost(usual)
    for size in (math.nan, math.inf):
        logs = log_norms(model, torch.full((2, 2), size, dtype=torch.float64), labels)
        assert all(map(math.isfinite, logs))
        assert lost(logs)
    model[4].weight.data.zero_()  # no gradient reaches the last hidden layer
    assert lost(log_norms(model, torch.ones(2, 2, dtype=torch.float64), labels))
    # A gradient that vanishes on its way has vanished: that is what is measured.
    assert not lost([-708.4, -300.0, -1.0])


def test_one_network_that_cannot_be_measured_makes_it_inconclusive() -> None:
    claim = Saturation()
    results = [Result(run, {}) for run in claim.plan(range(5), DIGITS)]
    names = [*(f"scale {scale:g}" for scale in claim.scales), *(f"depth {depth}" for depth in claim.depths)]
    for result in results:
        result.values.update({name: [0.0] * claim.depth for name in names})
    results[3].values["scale 4"] = [math.log(1.7e308)] * claim.depth
    conclusion = claim.conclude(results)
    assert conclusion.verdict is Verdict.INCONCLUSIVE
    assert "In 1 of 240 networks" in conclusion.reason


def test_the_weights_scale_does_not_matter_is_said_of_the_whole_network() -> None:
    # 0.6% a layer looks like nothing and is a third over 48 layers; 1.5% a layer is a factor of 2.
    for change, title in ((0.3, "With batch norm the weights' scale does not matter"), (0.72, "The factor a layer by")):
        conclusion = _conclude({("tanh", "batch norm", 4.0): 0.5 + change})
        assert conclusion.charts[1].title.startswith(title)


def test_the_explanation_of_no_vanishing_is_given_only_where_nothing_vanished() -> None:
    assert _conclude({}).findings[0].startswith("What theory says")  # made-up sigmoid nets vanish with batch norm
    grows = {("sigmoid", "batch norm", scale): 1.0 for scale in Saturation().scales}
    assert _conclude(grows).findings[0].startswith("Why batch norm")
