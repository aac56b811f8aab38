import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from torch import nn

from batchnorm.report.chart import Intervals, Panels
from batchnorm.study import Conclusion, Result, Verdict
from batchnorm.study.apparatus.usable import WORST, at_the_end, largest, learning_below, search
from batchnorm.study.arms import derive
from batchnorm.study.claims.learning_rate import LearningRate
from batchnorm.study.data import Split, split
from batchnorm.study.subjects import Stack, Subject
from study.helpers import DIGITS, baseline_of, run_here, wave

SMALL = LearningRate(
    subject=Stack(((8, 2), (8, 2))), deeper=(), top=10.0, rungs=4, count=7, stride=2, steps=30, trained=30, below=(2,)
)


def test_with_the_effect_removed_it_is_not_reproduced() -> None:
    removed = SMALL.without_effect()
    conclusion = removed.conclude(run_here(removed, seeds=range(2)))
    assert conclusion.verdict is Verdict.NOT_REPRODUCED
    # Equal arms find the same rate, to the last digit.
    span = conclusion.effects[0].interval
    assert (span.low, span.high) == (1, 1)


def test_a_small_run_is_deterministic_and_finds_larger_rates_with_batch_norm() -> None:
    # Deep enough for the plain net to be lost at large rates, and long enough for the running statistics to follow.
    small = replace(SMALL, subject=Stack(((8, 2), (8, 2), (8, 1), (8, 1))), steps=60)
    results = run_here(small, seeds=range(1))
    assert small.execute(results[0].run, lambda done, note: None) == dict(results[0].values)
    for result in results:
        assert result.number("norm: largest") > result.number("plain: largest")
        # What it calls the largest usable one it has tried, and that one learnt.
        tried = dict(zip(result.numbers("norm: rates tried"), result.numbers("norm: losses"), strict=True))
        assert tried[result.number("norm: largest")] < result.number("limit")
        assert result.number("same: rate") == result.number("plain: rate")
    conclusion = small.conclude(results)
    assert "your network" not in conclusion.effects[0].name
    assert len(conclusion.charts) == 3


@dataclass(frozen=True)
class _Users(Subject):
    """Not a sequence: a skip connection, torch's own batch norm and dropout."""

    @property
    def description(self) -> str:
        return "a user's"

    def build(self, parts: Split, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return _Net(parts.channels, parts.classes)


class _Net(nn.Module):
    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(8, classes)
        self.first = nn.Conv2d(channels, 8, 3, 2, 1, bias=False)
        self.second = nn.Conv2d(8, 8, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(8)])
        self.drop = nn.Dropout(0.1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = self.norms[0](self.first(images)).relu()
        hidden = hidden + self.norms[1](self.second(self.drop(hidden))).relu()
        return self.head(hidden.mean((2, 3)))


def test_it_can_be_put_to_another_network_alone() -> None:
    claim = LearningRate(steps=10, trained=10, count=5, below=(2,)).on(_Users())
    assert [run.arm for run in claim.plan([0], DIGITS)] == ["network"]
    conclusion = claim.conclude(run_here(claim, seeds=range(1)))
    assert "your network" in conclusion.findings[0]


@pytest.mark.parametrize("edge", range(13))
def test_the_search_finds_the_upper_end(edge: int) -> None:
    asked: list[int] = []

    def usable(place: int) -> bool:
        asked.append(place)
        return edge <= place <= edge + 5

    assert largest(usable, 13, 4) == edge
    assert len(asked) == len(set(asked)) <= 4 + 2


def test_the_search_finds_nothing_where_nothing_is() -> None:
    assert largest(lambda place: False, 13, 4) is None


def test_learning_begins_below_what_the_frequencies_of_the_classes_give() -> None:
    even = torch.arange(1000) % 10
    assert learning_below(even) == pytest.approx(0.9 * math.log(10))
    rare = (torch.arange(1000) < 30).long()
    entropy = -(0.03 * math.log(0.03) + 0.97 * math.log(0.97))
    spread = (0.03 * 0.97) ** 0.5 * math.log(0.97 / 0.03)
    assert learning_below(rare) == pytest.approx(entropy - 3 * spread / 1000**0.5)
    assert learning_below(rare.repeat(3)) == pytest.approx(entropy - 3 * spread / 1200**0.5)
    assert learning_below(torch.zeros(10, dtype=torch.long)) == 0


def test_a_run_is_judged_in_evaluation_mode_on_the_first_training_images() -> None:
    norm = nn.BatchNorm1d(2, affine=False)
    inputs = torch.tensor([[3.0, 1.0], [1.0, 3.0]]).repeat(650, 1)
    labels = torch.arange(1300) % 2
    # By the batch's own statistics each output is 1 or -1; by the running ones, still 0 and 1, it is what was put in.
    assert at_the_end(norm, inputs, labels) == pytest.approx(math.log1p(math.exp(-2)), rel=1e-3)
    norm.running_mean = torch.tensor([0.0, 50.0])
    assert at_the_end(norm, inputs, labels) == pytest.approx(24, rel=1e-3)
    assert not norm.training
    inputs[1200:] = math.nan  # not looked at
    assert at_the_end(norm, inputs, labels) == pytest.approx(24, rel=1e-3)
    inputs[0] = math.nan
    assert at_the_end(norm, inputs, labels) == WORST
    assert at_the_end(nn.Identity(), 1e30 * labels[:, None] * torch.tensor([1.0, 0.0]), labels) == WORST


def test_a_run_that_stopped_being_finite_has_not_learnt() -> None:
    build = partial(Stack(((8, 2), (8, 2))).build, parts := split(DIGITS, 0), 0)
    found = search(
        lambda: derive(build(), "none"), parts, [1e20], stride=1, steps=4, seed=0, report=lambda done, note: None
    )
    assert (list(found.losses), found.largest) == ([WORST], None)


def test_one_seed_alone_is_told_without_inf() -> None:
    conclusion = SMALL.conclude(run_here(SMALL, seeds=range(1)))
    assert "(0 to ∞)" in conclusion.reason
    assert "inf" not in conclusion.reason + "".join(conclusion.findings)


def _conclude(
    norm: Mapping[int, float] | float,
    plain: Mapping[int, float] | float = 0.1,
    *,
    tests: tuple[float, float, float] = (0.95, 0.91, 0.90),
    best: float = 0.95,
    noise: float = 0.001,
    deeper: float | None = None,
) -> Conclusion:
    """Made-up largest rates by seed, and test accuracies of batch norm, batch norm at the plain rate, and plain."""
    claim = LearningRate() if deeper is not None else replace(LearningRate(), deeper=())
    results = []
    for run in claim.plan(range(5), DIGITS):
        values = {"limit": 2.07, **baseline_of(0.1)}
        for arm, rates in (("norm", norm), ("plain", plain)):
            rate = rates if isinstance(rates, float) else rates.get(run.seed, 0.1)
            if run.arm != "network" and arm == "plain":
                rate = deeper or 0.0
            values |= {f"{arm}: learns": rate > 0, f"{arm}: largest": rate or 0.00316}
            values |= {f"{arm}: rates tried": [1.0, 0.1], f"{arm}: losses": [WORST, 1.0]}
        for arm, test in zip(("norm", "same", "plain"), tests, strict=True):
            values |= {f"{arm}: test": test + noise * wave(run.seed + len(arm)), f"{arm}: best": best}
            values |= {f"{arm}: rate": 0.05, f"{arm}: searched": [0.1, 0.05, 0.01]}
        results.append(Result(run, values))
    return claim.conclude(results)


def test_conclude_reaches_every_verdict() -> None:
    assert _conclude(1.0).verdict is Verdict.REPRODUCED
    assert _conclude(1.0).effects[0].interval.estimate == pytest.approx(10)
    assert _conclude(0.1).verdict is Verdict.NOT_REPRODUCED
    assert _conclude(0.19).verdict is Verdict.NOT_REPRODUCED  # larger, but not by a factor of 2
    assert _conclude({0: 2.0, 1: 1.0}).verdict is Verdict.INCONCLUSIVE


def test_a_plain_net_that_learns_at_no_rate_gives_no_factor() -> None:
    conclusion = _conclude(1.0, {0: 0.0})
    assert conclusion.verdict is Verdict.INCONCLUSIVE
    assert "without 1 of 5 networks learn at no rate tried, so there is no factor" in conclusion.reason
    assert conclusion.effects[0].interval.estimate == pytest.approx(10)  # of the seeds in which there is one
    assert conclusion.effects[0].note.startswith("only of the 4 of 5 seeds")
    assert len(conclusion.charts) == 2  # and accuracies that are none are not drawn
    assert all("accuracy" not in effect.name for effect in conclusion.effects)
    nowhere = _conclude(1.0, 0.0)
    assert (nowhere.verdict, len(nowhere.effects)) == (Verdict.INCONCLUSIVE, 0)
    # With batch norm it is an answer, if it is the rule.
    assert _conclude(0.0).verdict is Verdict.NOT_REPRODUCED
    assert _conclude({0: 0.0, 1: 1.0, 2: 1.0, 3: 1.0, 4: 1.0}).verdict is Verdict.INCONCLUSIVE
    assert _conclude(0.0, 0.0).verdict is Verdict.INCONCLUSIVE


def test_an_end_of_the_grid_decides_only_what_it_proves() -> None:
    assert _conclude(10.0).verdict is Verdict.REPRODUCED  # at least so large
    assert _conclude(10.0, 10.0).verdict is Verdict.INCONCLUSIVE
    assert _conclude(10.0, 9.0).verdict is Verdict.INCONCLUSIVE


def test_networks_that_have_not_learnt_conclude_nothing() -> None:
    conclusion = _conclude(1.0, best=0.2)
    assert conclusion.verdict is Verdict.INCONCLUSIVE
    assert "stayed at 20.0% validation accuracy" in conclusion.reason


def test_what_comes_with_the_larger_rate_is_said_as_far_as_it_is_known() -> None:
    assert "So most of it comes with the larger rate" in _conclude(1.0).findings[1]
    kept = _conclude(1.0, tests=(0.95, 0.95, 0.90), noise=0.002).findings[1]
    assert "So most of it is there at the plain net's rate" in kept
    assert "these seeds do not tell" in _conclude(1.0, tests=(0.95, 0.925, 0.90), noise=0.002).findings[1]
    none = _conclude(1.0, tests=(0.90, 0.90, 0.90), noise=0.002).findings[1]
    assert "there is nothing to explain" in none


def test_the_second_network_is_told_and_decides_nothing() -> None:
    assert _conclude(1.0, deeper=1.0).verdict is Verdict.REPRODUCED
    conclusion = _conclude(1.0, deeper=0.0)
    assert conclusion.verdict is Verdict.REPRODUCED
    assert conclusion.findings[-1].startswith("With 20 layers, 5 of 5 plain nets learn at no rate")
    panels, factors, _ = conclusion.charts
    assert isinstance(panels, Panels)
    assert len(panels.charts) == 2
    assert isinstance(factors, Intervals)
    assert [row.label for row in factors.rows] == ["8 layers"]
    told = _conclude(1.0, deeper=1.0).charts[1]
    assert isinstance(told, Intervals)
    assert [row.label for row in told.rows] == ["8 layers", "20 layers"]
    # A loss that is no number is drawn at the upper edge.
    line = panels.charts[0].series[0]  # type: ignore[union-attr]
    assert max(line.y) == pytest.approx(2 * 2.07)
