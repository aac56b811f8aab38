import math
from dataclasses import replace

import pytest
import torch

from batchnorm import BatchNorm1d
from batchnorm.study import Result, Verdict
from batchnorm.study.claims.gamma_beta import GammaBeta, least_loss
from study.helpers import DIGITS, run_here, wave

SMALL = GammaBeta(hidden=(24,), layers=((4, 2),), rates=(0.2,), sigmoid_rates=(0.8,), steps=100, every=50, probe=100)


def test_a_small_run_reproduces_and_is_deterministic() -> None:
    results = run_here(SMALL)
    conclusion = SMALL.conclude(results)
    assert conclusion.verdict is Verdict.REPRODUCED
    assert SMALL.execute(results[0].run, lambda done, note: None) == dict(results[0].values)
    for result in results:
        if result.run.arm.startswith("output without"):
            assert result.number("training loss") >= least_loss(10)


def test_with_the_effect_removed_it_is_not_reproduced() -> None:
    removed = SMALL.without_effect()
    conclusion = removed.conclude(run_here(removed, seeds=range(2)))
    assert conclusion.verdict is Verdict.NOT_REPRODUCED
    assert conclusion.effects[0].interval.estimate == 0  # both arms are the same networks


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_no_standardised_outputs_have_a_lower_loss(classes: int) -> None:
    # Gradient descent on the outputs themselves, the freest network there is, comes down to the bound and stops.
    labels = torch.arange(classes).repeat(12)
    outputs = torch.randn(len(labels), classes, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    outputs.requires_grad_()
    norm = BatchNorm1d(classes, affine=False, eps=1e-12, dtype=torch.float64)
    optimizer = torch.optim.Adam([outputs], 0.1)
    for _ in range(200):
        loss = torch.nn.functional.cross_entropy(norm(outputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert float(loss.detach()) >= least_loss(classes) - 1e-9
    assert float(loss.detach()) == pytest.approx(least_loss(classes), rel=1e-2)
    assert least_loss(10) == pytest.approx(math.log(1 + 9 * math.exp(-10 / 3)))


def _conclude(contrast: float, noise: float = 0.005, error: float = 1e-14) -> Verdict:
    claim = replace(GammaBeta(), rates=(0.1,), sigmoid_rates=(0.1,))
    results = []
    for run in claim.plan(range(5), DIGITS):
        place, arm, _ = run.arm.split()
        loss = 0.3 + (contrast + noise * wave(run.seed) if place == "output" and arm == "without" else 0.0)
        values: dict[str, float | list[float]] = {
            "best": 0.9,
            "test": 0.9,
            "test loss": loss,
            "training loss": 0.3,
            "least loss": 0.28,
        }
        if arm == "with":
            values["identity errors"] = [1e-15, error if run.seed == 3 else 1e-15]
        results.append(Result(run, values))
    return claim.conclude(results).verdict


def test_conclude_reaches_every_verdict() -> None:
    assert _conclude(0.3) is Verdict.REPRODUCED
    assert _conclude(0.0) is Verdict.NOT_REPRODUCED
    assert _conclude(0.3, error=1e-6) is Verdict.NOT_REPRODUCED  # one layer of one seed is enough
    assert _conclude(0.3, error=math.nan) is Verdict.NOT_REPRODUCED
    assert _conclude(0.1, noise=0.3) is Verdict.INCONCLUSIVE
