from dataclasses import dataclass

import pytest
import torch
from torch import nn

from batchnorm.report.chart import Curves, Intervals
from batchnorm.study import Conclusion, Result, Verdict
from batchnorm.study.claims.initialisation import Initialisation, unscaled
from batchnorm.study.data import Split, split
from batchnorm.study.subjects import Stack, Subject
from study.helpers import DIGITS, baseline_of, run_here, wave

SMALL = Initialisation(subject=Stack(((8, 2), (8, 2))), scales=(0.01, 1.0, 10.0), rates=(0.4,), again=(10.0,), steps=40)


def test_with_the_effect_removed_it_is_not_reproduced() -> None:
    removed = SMALL.without_effect()
    conclusion = removed.conclude(run_here(removed, seeds=range(2)))
    assert conclusion.verdict is Verdict.NOT_REPRODUCED
    # Equal arms drop equally, and the weights are scaled in both.
    drop, difference = sorted(conclusion.effects[:2], key=lambda effect: effect.note)
    assert drop.interval.estimate > 30
    assert (difference.interval.low, difference.interval.high) == (0, 0)


def test_a_small_run_is_deterministic_and_only_the_plain_net_is_lost_at_a_bad_scale() -> None:
    results = run_here(SMALL, seeds=range(1))
    assert SMALL.execute(results[0].run, lambda done, note: None) == dict(results[0].values)
    for result in results:
        small, usual, large = result.numbers("validation")
        assert usual > 0.5
        assert (small > 0.3) is (result.run.arm == "norm")
        assert result.number("validation anew") >= min(small, large)
        assert result.number("weights scaled") == 2
    assert len(SMALL.conclude(results).charts) == 2


class _Net(nn.Module):
    """Modules in another order than data passes them, a skip connection, a norm behind an activation, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 10)
        self.skip = nn.Conv2d(1, 8, 1)
        self.norm = nn.BatchNorm2d(8)
        self.behind = nn.BatchNorm2d(8)
        self.late = nn.Conv2d(8, 8, 3, padding=1)
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.drop = nn.Dropout(0.2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.first(images)).relu() + self.skip(images)
        hidden = self.behind(torch.sigmoid(self.late(self.drop(hidden))))
        return self.head(hidden.mean((2, 3)))


@dataclass(frozen=True)
class _Users(Subject):
    @property
    def description(self) -> str:
        return "a user's"

    def build(self, parts: Split, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return _Net()


def test_weights_whose_scale_is_taken_out_are_found_by_trying() -> None:
    parts = split(DIGITS, 0)
    model = _Net()
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    state = torch.random.get_rng_state()
    # Behind a sigmoid a norm does not take the scale out, nor does it next to a skip connection.
    assert unscaled(model, parts.train[0][:60]) == ["first.weight"]
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    assert torch.equal(torch.random.get_rng_state(), state)
    for seed in range(3):  # with seed 1 the numbers of the trial were once those of the weights themselves
        whole = SMALL.subject.build(parts, seed)
        assert unscaled(whole, parts.train[0][:60]) == ["0.weight", "3.weight"]


def test_zeros_at_the_beginning_hide_no_weight() -> None:
    images = split(DIGITS, 0).train[0][:60]
    model = _Net()
    nn.init.zeros_(model.head.weight)  # alone: the outputs are still its bias
    nn.init.zeros_(model.norm.weight)
    model.unused = nn.Linear(3, 3)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    state = torch.random.get_rng_state()
    assert unscaled(model, images) == ["first.weight"]
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    assert torch.equal(torch.random.get_rng_state(), state)
    nn.init.zeros_(model.head.bias)
    assert unscaled(model, images) == ["first.weight"]


def test_it_can_be_put_to_another_network() -> None:
    claim = Initialisation(scales=(0.1, 1.0), rates=(0.1,), again=(10.0,), steps=8).on(_Users())
    results = run_here(claim, seeds=range(1))
    assert all(result.number("weights scaled") == 1 for result in results)
    assert len(claim.conclude(results).effects) == 3 + 2 + 2


def _conclude(
    norm: float, plain: float, *, noise: float = 0.005, guessing: float = 0.1, best: float = 0.9, scaled: int = 4
) -> Conclusion:
    """Made-up accuracies at the worst scale, 0.001; 90% elsewhere."""
    claim = Initialisation()
    results = []
    for run in claim.plan(range(5), DIGITS):
        worst = (norm if run.arm == "norm" else plain) + noise * wave(run.seed + len(run.arm))
        accuracies = [worst, 0.9, 0.9, 0.9, 0.9]
        values = {"validation": accuracies, "test": accuracies, "best": best, "weights scaled": scaled, "rate": 0.3}
        values |= {"worst scale": 0.001, "rate anew": 3.0, "validation anew": 0.9, "test anew": 0.9}
        results.append(Result(run, {**values, **baseline_of(guessing)}))
    return claim.conclude(results)


def test_conclude_reaches_every_verdict() -> None:
    assert _conclude(0.88, 0.1).verdict is Verdict.REPRODUCED
    assert _conclude(0.6, 0.1).verdict is Verdict.NOT_REPRODUCED  # far less sensitive, but not insensitive
    assert _conclude(0.88, 0.86).verdict is Verdict.NOT_REPRODUCED  # insensitive, but no more so than without
    assert _conclude(0.82, 0.75).verdict is Verdict.NOT_REPRODUCED  # nor by enough
    assert _conclude(0.81, 0.1, noise=0.05).verdict is Verdict.INCONCLUSIVE


def test_the_statement_that_decides_comes_first() -> None:
    assert _conclude(0.6, 0.1).effects[0].note == "statement 1"
    refuted = _conclude(0.88, 0.86)
    assert refuted.effects[0].note == "statement 2"
    assert "Statement 1 holds; statement 2 is refuted." in refuted.reason


def test_the_limit_shrinks_with_what_there_is_to_learn() -> None:
    # Two points are within a tenth of the 90 that guessing leaves, and beyond a tenth of 15.
    assert _conclude(0.88, 0.6, noise=0.001).verdict is Verdict.REPRODUCED
    rare = _conclude(0.88, 0.85, noise=0.001, guessing=0.85)
    assert rare.verdict is Verdict.NOT_REPRODUCED
    assert "the limit is 1.5." in rare.reason


def test_networks_that_say_nothing_conclude_nothing() -> None:
    lazy = _conclude(0.6, 0.1, best=0.2)
    assert lazy.verdict is Verdict.INCONCLUSIVE
    assert "at scale 1 a network with batch norm stayed at 20.0%" in lazy.reason
    assert _conclude(0.9, 0.9, scaled=0).verdict is Verdict.INCONCLUSIVE


def test_charts_and_findings_say_what_was_measured() -> None:
    conclusion = _conclude(0.6, 0.1, noise=0.0)
    accuracies, costs = conclusion.charts
    assert isinstance(accuracies, Curves)
    assert accuracies.title.startswith("With batch norm the network learns at 5 of 5 scales")
    assert accuracies.title.endswith("without it at 4")
    assert accuracies.series[1].y[0] == pytest.approx(60)
    assert isinstance(costs, Intervals)
    assert [row.estimate for row in costs.rows] == pytest.approx([30, 0, 80, 0])
    assert "60.0% at 0.001, 90.0% at 0.01" in conclusion.findings[0]
    assert "Networks that have learnt, of 5: 0 at 0.001, 5 at 0.01" in conclusion.findings[1]
    assert (
        "from 10.0% to 90.0%, at these multiples of the rate of scale 1: 10, 10, 10, 10, 10." in conclusion.findings[3]
    )
