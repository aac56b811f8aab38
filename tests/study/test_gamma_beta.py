import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from batchnorm import BatchNorm1d
from batchnorm.study import Conclusion, Result, Source, Verdict
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
    assert "identity" in conclusion.effects[0].name  # which is what fails
    assert conclusion.effects[1].interval.estimate == 0  # both arms are the same networks


def _noise() -> tuple[np.ndarray, np.ndarray]:
    """Images that say nothing of their labels, 97% of which are the same."""
    generator = np.random.default_rng(0)
    return generator.standard_normal((600, 6, 6)), (generator.permutation(600) < 18).astype(int)


def test_on_images_that_say_nothing_of_their_labels_it_is_inconclusive() -> None:
    # Before the softmax the loss without beta is far larger here too: beta alone can say how common a class is.
    claim = replace(SMALL, steps=60, every=30)
    conclusion = claim.conclude(run_here(claim, data=Source(f"{__name__}:_noise")))
    contrast = next(effect for effect in conclusion.effects if effect.name.startswith("Contrast"))
    assert contrast.interval.low > claim.margin
    assert conclusion.verdict is Verdict.INCONCLUSIVE
    assert conclusion.effects[0].name.startswith("Best validation accuracy with gamma and beta, minus guessing")
    assert "have not learnt" in conclusion.reason


def test_a_network_that_diverged_gives_numbers_and_no_verdict_on_the_identity() -> None:
    claim = replace(SMALL, rates=(1e30,), steps=4, every=2)
    results = [
        result
        for result in run_here(claim, seeds=[0], data=DIGITS)
        if result.run.arm.startswith(("output with", "relu with"))
    ]
    for result in results:
        numbers = [result.number(name) for name in ("test loss", "training loss")]
        assert all(math.isfinite(value) for value in [*numbers, *result.values.get("identity errors", [])])
    model = nn.Sequential(nn.Linear(2, 2), BatchNorm1d(2))
    model[0].weight.data.fill_(math.nan)
    assert claim._identity_errors(model, torch.ones(3, 2)) == []
    model[0].weight.data.zero_()
    model[0].bias.data.zero_()
    with torch.no_grad():
        assert claim._identity_errors(model, torch.ones(3, 2)) == [0.0]


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


def _conclude(contrast: float, noise: float = 0.005, error: float = 1e-14, *, best: float = 0.9) -> Conclusion:
    """Made-up results; the network with gamma and beta before ReLU has that best accuracy, all others 90%."""
    claim = replace(GammaBeta(), rates=(0.1,), sigmoid_rates=(0.1,))
    results = []
    for run in claim.plan(range(5), DIGITS):
        place, arm, _ = run.arm.split()
        loss = 0.3 + (contrast + noise * wave(run.seed) if place == "output" and arm == "without" else 0.0)
        values: dict[str, float | list[float]] = {
            "best": best if (place, arm) == ("relu", "with") else 0.9,
            "test": 0.9,
            "test loss": loss,
            "training loss": 0.3,
            "least loss": 0.28,
            "guessing": 0.5,
            "validation images": 1000,
            "test images": 1000,
        }
        if arm == "with":
            values["identity errors"] = [1e-15, error if run.seed == 3 else 1e-15]
        results.append(Result(run, values))
    return claim.conclude(results)


def test_conclude_reaches_every_verdict() -> None:
    assert _conclude(0.3).verdict is Verdict.REPRODUCED
    assert _conclude(0.0).verdict is Verdict.NOT_REPRODUCED
    assert _conclude(0.3, error=1e-6).verdict is Verdict.NOT_REPRODUCED  # one layer of one seed is enough
    assert _conclude(0.3, error=1e6).verdict is Verdict.NOT_REPRODUCED  # not a number
    assert _conclude(0.1, noise=0.3).verdict is Verdict.INCONCLUSIVE
    assert _conclude(0.3, best=0.51).verdict is Verdict.INCONCLUSIVE  # a network that has hardly learnt
    assert _conclude(1e6).verdict is Verdict.INCONCLUSIVE  # losses that are not finite
    assert _conclude(0.3, error=1e-6, best=0.51).verdict is Verdict.NOT_REPRODUCED  # the identity needs no training


def test_the_effect_that_decided_comes_first() -> None:
    assert _conclude(0.3).effects[0].name.startswith("Contrast")
    assert _conclude(0.0).effects[0].name.startswith("Contrast")
    assert _conclude(0.3, error=1e-6).effects[0].name.startswith("Largest relative error of the identity")
    assert _conclude(0.3, best=0.51).effects[0].name.endswith("minus guessing, before ReLU")
    assert "40 layers" in _conclude(0.3).reason
