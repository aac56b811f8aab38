from dataclasses import replace

import pytest
import torch
from torch import nn

from batchnorm import BatchNorm1d
from batchnorm.study import Conclusion, Result, Run, Verdict
from batchnorm.study.apparatus.copies import Copies
from batchnorm.study.claims.input_standardisation import InputStandardisation
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
    standardised: list[int],
    norm_first: list[int],
    *,
    missed: dict[str, int] | None = None,
    raw_best: float = 0.1,
    rates: dict[str, list[float]] | None = None,
) -> Conclusion:
    """Made-up steps, five seeds; the raw arm always takes 400. In so many seeds an arm does not get there."""
    claim = InputStandardisation(rates=(0.001, 0.01, 0.1), steps=800)
    results = []
    for seed in range(5):
        for arm, steps in (("raw", 400), ("standardised", standardised[seed]), ("norm first", norm_first[seed])):
            arrives = seed >= (missed or {}).get(arm, 0)
            works = (rates or {}).get(arm, [1.0, 1.0, 1.0])
            values = {
                "steps": [float(steps)] * 3,
                "arrived": [float(arrives and works[place]) for place in range(3)],
                "chosen": works.index(1.0) if 1.0 in works else 0,
                "curve": [0.5] * len(claim._shown()),
                "best": raw_best,
                "guessing": 0.66,
                "test": 0.9,
                "smallest deviation": 0.01,
                "largest deviation": 500.0,
            }
            results.append(Result(Run("input-standardisation", arm, seed, None), values))
    return claim.conclude(results)


FAST, SLOW, MIXED = [20, 30, 25, 20, 22], [400, 420, 410, 400, 405], [20, 400, 800, 30, 790]


def test_conclude_reaches_every_verdict() -> None:
    assert _conclude(FAST, FAST).verdict is Verdict.REPRODUCED
    assert _conclude(FAST, SLOW).verdict is Verdict.NOT_REPRODUCED
    assert _conclude(SLOW, FAST).verdict is Verdict.NOT_REPRODUCED
    assert _conclude(FAST, MIXED).verdict is Verdict.INCONCLUSIVE
    assert _conclude(FAST, FAST, missed={"norm first": 3}).verdict is Verdict.NOT_REPRODUCED
    assert _conclude(FAST, FAST, missed={"norm first": 1}).verdict is Verdict.INCONCLUSIVE
    assert _conclude(FAST, FAST, raw_best=0.5).verdict is Verdict.INCONCLUSIVE  # no baseline to speak of
    assert _conclude(FAST, FAST).effects[0].interval.estimate == pytest.approx(0.0576, abs=1e-3)


@pytest.mark.parametrize(
    ("steps", "verdict"),
    [
        ([340, 345, 342, 341, 344], Verdict.REPRODUCED),  # ratios from 0.85 to 0.8625
        ([368, 384, 376, 370, 382], Verdict.NOT_REPRODUCED),  # from 0.92 to 0.96: below 1, and not below 0.9
        ([350, 370, 360, 358, 362], Verdict.INCONCLUSIVE),  # about 0.9
    ],
)
def test_one_limit_stands_between_the_verdicts(steps: list[int], verdict: Verdict) -> None:
    assert _conclude(steps, FAST).verdict is verdict
    assert "below 0.9" in InputStandardisation.about.pass_rule
    assert "below 1" not in InputStandardisation.about.pass_rule


def test_the_effect_that_decided_comes_first() -> None:
    assert "standardised against raw" in _conclude(FAST, FAST).effects[0].name
    assert "batch norm first against raw" in _conclude(FAST, SLOW).effects[0].name
    assert "standardised against raw" in _conclude(SLOW, FAST).effects[0].name
    assert "batch norm first against raw" in _conclude(FAST, FAST, missed={"norm first": 1}).effects[0].name
    assert "raw features over that of guessing" in _conclude(FAST, FAST, raw_best=0.5).effects[0].name


def test_a_ratio_is_called_the_bound_that_it_is() -> None:
    def notes(missed: dict[str, int]) -> dict[str, str]:
        return {effect.name: effect.note for effect in _conclude(FAST, FAST, missed=missed).effects}

    own = "Steps to the tolerance, batch norm first against raw"
    assert notes({})[own] == ""
    assert notes({"raw": 4})[own] == "raw never got there in 4 of 5 seeds: the ratio is an upper bound"
    assert (
        notes({"norm first": 1})[own] == "batch norm first never got there in 1 of 5 seeds: the ratio is a lower bound"
    )
    both = notes({"raw": 4, "norm first": 1})
    assert both[own].endswith("the ratio is neither an upper nor a lower bound")
    assert both["Steps to the tolerance, standardised against raw"].endswith("an upper bound")


def test_the_title_speaks_of_far_larger_rates_only_if_they_are() -> None:
    def title(raw: list[float], treated: list[float]) -> str:
        rates = {"raw": raw, "standardised": treated, "norm first": treated}
        return _conclude(FAST, FAST, rates=rates).charts[1].title

    neutral = "Steps to the tolerance at each learning rate"
    assert "far larger learning rates work, and more" in title([1.0, 0.0, 0.0], [1.0, 1.0, 0.0])
    assert title([0.0, 0.0, 1.0], [1.0, 1.0, 0.0]) == neutral  # more of them, but smaller
    assert title([1.0, 0.0, 0.0], [0.0, 1.0, 0.0]) == neutral  # larger, but not more
    assert title([0.0, 0.0, 0.0], [1.0, 1.0, 0.0]).endswith("none with raw ones")
