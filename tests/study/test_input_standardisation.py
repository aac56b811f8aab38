from dataclasses import replace

import pytest
import torch
from torch import nn

from batchnorm import BatchNorm1d
from batchnorm.study import Conclusion, Result, Run, Verdict
from batchnorm.study.claims.input_standardisation import InputStandardisation
from batchnorm.study.copies import Copies
from study.helpers import run_here

SMALL = InputStandardisation(rates=(1e-4, 1e-2, 1e-1), steps=300, tolerance=0.25)


def test_a_small_run_reproduces_and_is_deterministic() -> None:
    results = run_here(SMALL, range(100, 105), None)
    conclusion = SMALL.conclude(results)
    assert conclusion.verdict is Verdict.REPRODUCED
    assert SMALL.execute(results[2].run, lambda done, note: None) == dict(results[2].values)
    assert results[0].number("smallest deviation") < 0.01
    assert results[0].number("largest deviation") > 500


def test_with_standardised_input_in_every_arm_it_is_not_reproduced() -> None:
    removed = replace(SMALL.without_effect(), steps=100)
    results = run_here(removed, range(5), None)
    conclusion = removed.conclude(results)
    assert conclusion.verdict is Verdict.NOT_REPRODUCED
    raw, standardised = (dict(result.values) for result in results[:2])
    assert raw == standardised  # nothing else differs between these two arms


@pytest.mark.parametrize("norm_first", [False, True])
def test_a_copy_trains_as_a_network_of_its_own_does(norm_first: bool) -> None:
    """Beside a copy that diverges, and with torch's layers and optimizer as the judge."""
    generator = torch.Generator().manual_seed(5)
    x, y = torch.randn(24, 3, generator=generator) * 10, torch.randint(0, 2, (24,), generator=generator)
    sizes, rates = (3, 4, 2), torch.tensor([0.05, 1e4])
    copies = Copies(sizes, 2, norm_first=norm_first, seed=7)
    alone = nn.Sequential(BatchNorm1d(3) if norm_first else nn.Identity(), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        for layer, weight in zip((alone[1], alone[3]), copies.weights, strict=True):
            layer.weight.copy_(weight[0].T)
            layer.bias.zero_()
    optimizer = torch.optim.SGD(alone.parameters(), 0.05, momentum=0.9)
    velocities = [torch.zeros_like(parameter) for parameter in copies.parameters()]
    for _ in range(8):
        logits = copies(x)
        copies.zero_grad()
        sum(nn.functional.cross_entropy(each, y) for each in logits).backward()
        copies.step(velocities, rates)
        optimizer.zero_grad()
        nn.functional.cross_entropy(alone(x), y).backward()
        optimizer.step()
    alone.eval()
    copies.eval()
    torch.testing.assert_close(copies(x)[0], alone(x), rtol=1e-4, atol=1e-5)


def _conclude(
    standardised: list[int], norm_first: list[int], *, arrived: bool = True, raw_best: float = 0.1
) -> Conclusion:
    """Made-up steps at one rate, five seeds; the raw arm always takes 400."""
    claim = InputStandardisation(rates=(0.1,), steps=800)
    results = []
    for seed in range(5):
        for arm, steps in (("raw", 400), ("standardised", standardised[seed]), ("norm first", norm_first[seed])):
            values = {
                "steps": [float(steps)],
                "arrived": [float(arrived or arm != "norm first" or seed > 2)],
                "chosen": 0,
                "curve": [0.5] * len(claim._shown()),
                "best": raw_best,
                "guessing": 0.66,
                "test": 0.9,
                "smallest deviation": 0.01,
                "largest deviation": 500.0,
            }
            results.append(Result(Run("input-standardisation", arm, seed, None), values))
    return claim.conclude(results)


def test_conclude_reaches_every_verdict() -> None:
    fast, slow, mixed = [20, 30, 25, 20, 22], [400, 420, 410, 400, 405], [20, 400, 800, 30, 790]
    assert _conclude(fast, fast).verdict is Verdict.REPRODUCED
    assert _conclude(fast, slow).verdict is Verdict.NOT_REPRODUCED
    assert _conclude(slow, fast).verdict is Verdict.NOT_REPRODUCED
    assert _conclude(fast, mixed).verdict is Verdict.INCONCLUSIVE
    assert _conclude(fast, fast, arrived=False).verdict is Verdict.NOT_REPRODUCED  # 3 of 5 never got there
    assert _conclude(fast, fast, raw_best=0.5).verdict is Verdict.INCONCLUSIVE  # no baseline to speak of
    assert _conclude(fast, fast).effects[0].interval.estimate == pytest.approx(0.0576, abs=1e-3)
