import itertools
from dataclasses import replace
from functools import partial

import pytest
import torch

from batchnorm.report.chart import Panels
from batchnorm.study import Conclusion, Result, Verdict
from batchnorm.study.claims.placement import Placement, blanked, two_one_sided
from batchnorm.study.data import Split, split
from batchnorm.study.statistics import interval
from batchnorm.study.subjects import Dense
from batchnorm.study.training import Recipe, train
from study.helpers import DIGITS, baseline_of, run_here, wave

SMALL = Placement(
    subject=Dense((24,)),
    other=Dense((24,), "sigmoid"),
    relu_rates=(0.1, 0.4),
    sigmoid_rates=(0.1, 1.0),
    steps=70,
    every=35,
)


def test_a_small_run_is_deterministic_and_trains_both_orders() -> None:
    results = run_here(SMALL, seeds=range(2))
    assert SMALL.execute(results[0].run, lambda done, note: None) == dict(results[0].values)
    conclusion = SMALL.conclude(results)
    assert len(conclusion.charts) == 2
    by_arm = {result.run.arm: result for result in results if result.run.seed == 0}
    # The orders are different networks, and both learn.
    for activation in ("relu", "sigmoid"):
        before, after = (by_arm[f"{activation} {order} 0.1"] for order in ("before", "after"))
        assert before.values["validation"] != after.values["validation"]
        assert min(before.number("best"), after.number("best")) > 0.5


def test_with_the_effect_removed_it_is_not_reproduced() -> None:
    removed = SMALL.without_effect()
    conclusion = removed.conclude(run_here(removed, seeds=range(5)))
    assert conclusion.verdict is Verdict.NOT_REPRODUCED
    # Every fourth of nine tenths that could be learnt, and somewhat more, as fewer images teach less.
    assert conclusion.effects[0].interval.estimate < -10


def test_the_control_finds_a_difference_also_where_a_straight_line_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    # Two classes that a linear network tells apart without error: no activation is needed, and none is missed.
    simple = partial(_two_classes, told=True)
    monkeypatch.setattr("batchnorm.study.claims.placement.split", simple)
    assert SMALL.conclude(run_here(SMALL, seeds=range(5))).verdict is Verdict.REPRODUCED
    removed = SMALL.without_effect()
    assert removed.conclude(run_here(removed, seeds=range(5))).verdict is Verdict.NOT_REPRODUCED


def test_noise_is_equal_in_both_orders_and_yet_no_equivalence(monkeypatch: pytest.MonkeyPatch) -> None:
    # 97% of one class, whatever the image shows: guessing that class is right 97% of the time in both orders.
    monkeypatch.setattr("batchnorm.study.claims.placement.split", partial(_two_classes, told=False, frequent=0.97))
    short = replace(SMALL, steps=20, every=10, relu_rates=(0.01,), sigmoid_rates=(0.01,))
    for claim in (short, short.without_effect()):
        conclusion = claim.conclude(run_here(claim, seeds=range(5)))
        assert conclusion.verdict is Verdict.INCONCLUSIVE
        assert "not every network has learnt" in conclusion.reason


def _two_classes(source: object, seed: int, *, told: bool, frequent: float = 0.5) -> Split:
    generator = torch.Generator().manual_seed(seed)

    def part(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = (torch.arange(count) >= frequent * count).long()[torch.randperm(count, generator=generator)]
        images = torch.randn(count, 1, 4, 4, generator=generator)
        images[:, 0, 0, 0] += 12.0 * told * (2 * labels - 1)
        return images, labels

    return Split(part(600), part(300), part(300))


def test_every_fourth_image_is_blank_and_no_label_changes() -> None:
    parts = split(DIGITS, 0)
    hidden = blanked(parts, 4)
    for before, after in zip(
        (parts.train, parts.validation, parts.test), (hidden.train, hidden.validation, hidden.test), strict=True
    ):
        assert torch.equal(before[1], after[1])
        assert after[0][::4].abs().sum() == 0
        for place in (1, 2, 3):
            assert torch.equal(before[0][place::4], after[0][place::4])
        assert before[0][::4].abs().sum() > 0  # the images themselves stay


def _concluded(
    relu: float,
    sigmoid: float,
    noise: float = 0.002,
    *,
    relu_noise: float | None = None,
    trained: float = 0.95,
    trained_after: float | None = None,
    guessing: float = 0.1,
    moved: float = 1.0,
) -> Conclusion:
    claim = Placement(relu_rates=(0.1,), sigmoid_rates=(0.1,))
    results = []
    for run in claim.plan(range(5), DIGITS):
        activation, order, _ = run.arm.split()
        noises = {"relu": noise if relu_noise is None else relu_noise, "sigmoid": noise}
        gap = {"relu": relu, "sigmoid": sigmoid}[activation] + noises[activation] * wave(run.seed)
        best = trained if order == "before" or trained_after is None else trained_after
        values = {"best": best, "test": 0.94 + gap * (order == "after"), "steps": [1.0], "validation": [best]}
        results.append(Result(run, {**values, **baseline_of(guessing), "moved": moved}))
    return claim.conclude(results)


def _conclude(relu: float, sigmoid: float, noise: float = 0.002, trained: float = 0.95) -> Verdict:
    return _concluded(relu, sigmoid, noise, trained=trained).verdict


def test_conclude_reaches_every_verdict() -> None:
    assert _conclude(0.0, 0.001) is Verdict.REPRODUCED
    assert _conclude(0.0, 0.03) is Verdict.NOT_REPRODUCED
    assert _conclude(-0.03, 0.0) is Verdict.NOT_REPRODUCED
    assert _conclude(0.0, 0.009, noise=0.02) is Verdict.INCONCLUSIVE  # too noisy to tell
    assert _conclude(0.0, 0.0, trained=0.2) is Verdict.INCONCLUSIVE  # equal, because neither learnt anything


def test_learning_is_measured_against_guessing() -> None:
    assert _conclude(0.0, 0.0, trained=0.46) is Verdict.REPRODUCED  # of ten classes, less than half but learnt
    assert _concluded(0.0, 0.0, trained=0.97, guessing=0.97).verdict is Verdict.INCONCLUSIVE
    # One order that has not learnt is no equivalent of one that has, however near guessing is to it.
    assert _concluded(0.0, 0.0, trained_after=0.1).verdict is Verdict.INCONCLUSIVE
    assert _concluded(-0.1, -0.1, trained_after=0.1).verdict is Verdict.NOT_REPRODUCED


def test_the_margin_shrinks_with_what_there_is_to_learn() -> None:
    # Half a point is within the margin of one point, and beyond a twentieth of the five points that a guess leaves.
    assert _concluded(0.005, 0.005, trained=0.99, guessing=0.5).verdict is Verdict.REPRODUCED
    rare = _concluded(0.005, 0.005, noise=0.001, trained=0.99, guessing=0.95)
    assert rare.verdict is Verdict.NOT_REPRODUCED
    assert "the margin is ±0.25." in rare.reason


def test_the_effect_that_decides_comes_first() -> None:
    # ReLU differs for sure; sigmoid more on average, but too noisily to say.
    refuted = _concluded(0.03, 0.05, noise=0.1, relu_noise=0.001)
    assert refuted.verdict is Verdict.NOT_REPRODUCED
    assert "with ReLU" in refuted.effects[0].name
    # ReLU is equal for sure, half a point away; sigmoid is in the middle and open.
    unclear = _concluded(0.005, 0.0, noise=0.05, relu_noise=0.001)
    assert unclear.verdict is Verdict.INCONCLUSIVE
    assert "with sigmoid" in unclear.effects[0].name


def test_findings_and_axes_are_of_the_data_at_hand() -> None:
    conclusion = _concluded(0.0, 0.02, noise=0.0)
    # At most √(0.06 + 0.06)/√1000 = 1.10 points with ReLU, as both are right on 94%; 96% against 94% with sigmoid.
    assert "on 1,000 images" in conclusion.findings[1]
    assert "at most 1.10 points with ReLU, and seeds vary by 0.00 (standard deviation); 1.00" in conclusion.findings[1]
    assert not any("stays open" in finding for finding in conclusion.findings)
    panels = conclusion.charts[1]
    assert isinstance(panels, Panels)
    assert [chart.y_range for chart in panels.charts] == [(90, 100), (90, 100)]
    (low,) = {chart.y_range for chart in _concluded(0.0, 0.0, trained=0.46).charts[1].charts}  # type: ignore[union-attr]
    assert low == (40, 100)
    wide = _concluded(0.0, 0.0, noise=0.05, relu_noise=0.001).findings
    assert any("over the margin with sigmoid, so there the question stays open" in finding for finding in wide)


def test_a_wide_interval_around_zero_is_no_equivalence() -> None:
    assert _conclude(0.0, 0.0, noise=0.05) is Verdict.INCONCLUSIVE


def test_the_equivalence_test_uses_the_90_percent_interval() -> None:
    values = [0.1, -0.3, 0.4, 0.2, 0.0]
    span = two_one_sided(interval(values))
    # t(4, 0.95) = 2.1318, by the tables; s = 0.25884, n = 5.
    assert span.high - span.estimate == pytest.approx(2.1318 * 0.258844 / 5**0.5, rel=1e-4)
    assert span.low + span.high == pytest.approx(2 * span.estimate)


def test_a_rate_that_decays_starts_whole_and_falls_in_a_straight_line() -> None:
    def moves(decay: bool) -> list[float]:
        # So small a rate that both runs have the same gradients: what they move apart is the rate alone.
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        path = [model[1].bias.detach().clone()]
        recipe = Recipe(1e-4, steps=4, every=1, decay=decay)
        parts = split(DIGITS, 0)
        train(
            model,
            parts,
            recipe,
            seed=0,
            report=lambda done, note: None,
            watch=lambda step: path.append(model[1].bias.detach().clone()),
        )
        return [float((after - before).abs().sum()) for before, after in itertools.pairwise(path)]

    shares = [slower / whole for slower, whole in zip(moves(True), moves(False), strict=True)]
    assert shares == pytest.approx([1, 0.75, 0.5, 0.25], abs=0.02)


def test_a_network_most_of_whose_norms_stay_where_they_are_says_nothing() -> None:
    assert _concluded(0.0, 0.0, moved=0.5).verdict is Verdict.REPRODUCED
    few = _concluded(0.03, 0.03, moved=1 / 17)
    assert few.verdict is Verdict.INCONCLUSIVE
    assert "only 6% of the norms have an activation beside them" in few.reason
