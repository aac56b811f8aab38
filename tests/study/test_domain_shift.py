import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from batchnorm import BatchNorm1d
from batchnorm.report.chart import Curves, Intervals, Panels
from batchnorm.study import Conclusion, Result, Run, Verdict
from batchnorm.study.apparatus.corruptions import CORRUPTIONS, SEVERITIES, corrupted
from batchnorm.study.claims.domain_shift import DomainShift
from batchnorm.study.data import split
from batchnorm.study.subjects import Own, Stack
from study.helpers import DIGITS, baseline_of, run_here, wave

SMALL = DomainShift(subject=Stack(((16, 2), (16, 2))), rates=(0.5,), steps=40, counts=(32, 360), priors=(0,))


def test_a_small_run_reproduces_and_the_control_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    # Each class alone takes most of the time, and is no part of the verdict.
    monkeypatch.setattr("batchnorm.study.claims.domain_shift._CLASSES", 1)
    conclusion = SMALL.conclude(run_here(SMALL, seeds=range(5)))
    assert conclusion.verdict is Verdict.REPRODUCED
    removed = SMALL.without_effect()
    clean = run_here(removed, seeds=range(5))
    conclusion = removed.conclude(clean)
    assert conclusion.verdict is Verdict.NOT_REPRODUCED
    # No image differs from a clean one in any condition, and group norm has nothing to be adapted.
    for result in clean:
        assert set(result.numbers("unadapted")) == {result.number("clean")}
        assert ("32 images, prior 0" in result.values) == (result.run.arm == "batch")


def test_a_run_is_deterministic_and_takes_its_best_rate() -> None:
    claim = replace(SMALL, rates=(0.3, 1e-6), steps=20, counts=(8,), few=8, priors=(0, 16))
    run = Run("domain-shift", "batch", 3, DIGITS)
    before = torch.random.get_rng_state()
    first = claim.execute(run, lambda done, note: None)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(3)
    assert claim.execute(run, lambda done, note: None) == first
    torch.random.set_rng_state(before)
    assert first["rate"] == 0.3


def _dense() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))


def test_one_value_has_no_variance_and_says_so_in_no_number() -> None:
    claim = replace(SMALL, subject=Own(f"{__name__}:_dense"), steps=6, counts=(1, 32))
    claim.check(split(DIGITS, 0))
    results = run_here(claim, seeds=range(2))
    assert all(math.isnan(value) for value in results[0].numbers("1 images, prior 0"))
    assert all(math.isfinite(value) for value in results[0].numbers("32 images, prior 0"))
    conclusion = claim.conclude(results)
    assert "n = 1: too few values" in conclusion.findings[1]


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_corruptions_grow_with_severity_and_are_of_the_seed(corruption: str) -> None:
    images = split(DIGITS, 0).test[0][:50]
    assert torch.equal(corrupted(images, corruption, 0, 1), images)
    worse = [corrupted(images, corruption, severity, 1) for severity in (1, 2, 3)]
    changes = [float((given - images).square().mean()) for given in worse]
    assert 0 < changes[0] < changes[1] < changes[2]
    assert len(SEVERITIES[corruption]) == len(worse)
    for given in worse:
        assert given.shape == images.shape
        assert float(images.min()) - 1e-5 <= float(given.min())
        assert float(given.max()) <= float(images.max()) + 1e-5
    assert torch.equal(worse[2], corrupted(images, corruption, 3, 1))
    assert torch.equal(worse[2], corrupted(images, corruption, 3, 2)) == (corruption != "noise")


def test_blur_and_contrast_are_what_they_are_called() -> None:
    point = torch.zeros(1, 2, 20, 40)
    point[0, 0, 10, 20] = 1.0
    blurred = corrupted(point, "blur", 2, 0)
    spread = blurred[0, 0]
    assert float(spread.sum()) == pytest.approx(1)
    assert float(blurred[0, 1].abs().sum()) == 0  # no channel leaks into another
    rows = spread.sum(1)
    # One pixel, 5% of the shorter side; cut off at three deviations, so a little less.
    assert float((rows * (torch.arange(20) - 10).square()).sum()) == pytest.approx(1, rel=0.03)
    assert torch.allclose(
        spread.sum(0)[10:31], rows[:21] if len(rows) > 20 else torch.cat([rows, rows[:1] * 0]), atol=1e-6
    )
    flat = corrupted(point + 3, "contrast", 1, 0)
    assert float(flat.mean()) == pytest.approx(float((point + 3).mean()))
    assert float(flat.max() - flat.min()) == pytest.approx(0.5)


def _concluded(
    *,
    few: float = 0.2,
    many: float = 0.3,
    noise: float = 0.0,
    many_noise: float = 0.0,
    best: float = 0.9,
    alone: float = 0.3,
    tested: int = 1000,
) -> Conclusion:
    claim = DomainShift()
    results = []
    for run in claim.plan(range(5), DIGITS):
        values: dict[str, float | list[float]] = {"clean": 0.9, "clean adapted": 0.9, "rate": 0.6, "best": best}
        values["unadapted"] = [0.4] * 9 if run.arm == "batch" else [0.65] * 9
        for count in claim.counts:
            won = many + many_noise * wave(run.seed) if count == 512 else few + noise * wave(run.seed)
            for prior in claim.priors:
                values[f"{count} images, prior {prior}"] = [0.4 + won] * 9
        values |= {f"one class, prior {prior}": [alone] * 3 for prior in claim.priors}
        results.append(Result(run, values | baseline_of(0.1) | {"test images": tested}))
    return claim.conclude(results)


def test_conclude_reaches_every_verdict() -> None:
    assert _concluded().verdict is Verdict.REPRODUCED
    assert _concluded(few=0.005).verdict is Verdict.NOT_REPRODUCED
    assert _concluded(many=0.0).verdict is Verdict.NOT_REPRODUCED
    assert _concluded(few=0.02, noise=0.03).verdict is Verdict.INCONCLUSIVE
    assert _concluded(many=0.02, many_noise=0.03).verdict is Verdict.INCONCLUSIVE
    guess = _concluded(best=0.3)
    assert guess.verdict is Verdict.INCONCLUSIVE
    assert "a network with batch norm stayed at 30.0%" in guess.reason


def test_the_effect_that_decides_comes_first_and_numbers_are_measured() -> None:
    conclusion = _concluded()
    assert "adapted to 32 images" in conclusion.effects[0].name
    assert "adapted to 512 images" in _concluded(many=0.0).effects[0].name
    effects = {effect.name: effect.interval.estimate for effect in conclusion.effects}
    assert effects["Test accuracy on corrupted images, group norm minus batch norm"] == pytest.approx(25)
    assert effects["Test accuracy on corrupted images, group norm minus batch norm adapted to 512"] == pytest.approx(-5)
    assert effects[
        "Test accuracy at the middle severity, adapted to at most 32 images of one class minus not"
    ] == pytest.approx(-10)
    assert (
        "costs batch norm 50.0 points, and statistics of 512 corrupted images bring back 30.0" in conclusion.findings[0]
    )
    assert "give 30.0% with N = 0" in conclusion.findings[2]
    counts, severities, one_class = conclusion.charts
    assert isinstance(counts, Curves)
    assert counts.series[0].y == pytest.approx([60, 60, 60, 60, 70])
    assert isinstance(severities, Panels)
    assert [chart.title for chart in severities.charts] == ["Noise", "Blur", "Contrast"]
    assert isinstance(one_class, Intervals)
    assert [row.estimate for row in one_class.rows] == pytest.approx([20, -10] * 3)


def test_of_one_class_alone_it_says_what_the_data_say() -> None:
    assert "So it fails there" in _concluded().findings[2]
    assert "−10.0, −10.0 to −10.0 points with one class alone against +20.0" in _concluded().findings[2]
    assert "So it helps there too, but less than images of all classes" in _concluded(alone=0.5).findings[2]
    assert "So it helps there too: " in _concluded(alone=0.7).findings[2]
    assert "not told whether" in _concluded(alone=0.4).findings[2]


def test_few_test_images_are_counted_as_they_are() -> None:
    conclusion = _concluded(tested=20)
    assert conclusion.verdict is Verdict.REPRODUCED
    assert "with those of 20 corrupted images (" in conclusion.reason
    assert " 32 " not in conclusion.reason
    assert " 512 " not in conclusion.reason
    names = [effect.name for effect in conclusion.effects]
    assert len(names) == len(set(names))
    counts, severities, _ = conclusion.charts
    assert isinstance(counts, Curves)
    assert counts.x_ticks == [1.0, 8.0, 20.0]
    assert isinstance(severities, Panels)
    labels = [series.label for series in severities.charts[0].series]
    assert labels == ["not adapted", "adapted to 20", "group norm"]


def test_a_class_without_a_variance_is_left_out() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(BatchNorm1d(3), nn.Linear(3, 2))
    images, labels, order = torch.randn(5, 3), torch.tensor([0, 0, 0, 0, 1]), torch.arange(5)
    found = SMALL._one_class(model, images, labels, order, 0)
    assert math.isfinite(found)
    assert math.isnan(SMALL._one_class(model, images[3:], labels[3:], order[:2], 0))
    conclusion = _concluded(alone=math.nan)
    assert conclusion.verdict is Verdict.REPRODUCED
    assert not any("one class" in effect.name for effect in conclusion.effects)
    assert "too few values for a variance" in conclusion.findings[2]
    one_class = conclusion.charts[2]
    assert isinstance(one_class, Intervals)
    assert len(one_class.rows) == 3
