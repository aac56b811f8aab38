from dataclasses import replace

import numpy as np
import pytest
import torch

from batchnorm.report.chart import Curves
from batchnorm.study import Conclusion, Result, Verdict
from batchnorm.study.claims.sigmoid_distribution import SigmoidDistribution, binarised, drift
from batchnorm.study.data import split
from study.helpers import DIGITS, baseline_of, run_here, wave

SMALL = SigmoidDistribution(hidden=(24, 24, 24), rates=(0.3, 1.0), steps=250, every=25)


def test_a_small_run_reproduces_and_is_deterministic() -> None:
    results = run_here(SMALL)
    conclusion = SMALL.conclude(results)
    assert conclusion.verdict is Verdict.REPRODUCED
    assert len(conclusion.charts) == 3
    again = SMALL.execute(results[0].run, lambda done, note: None)
    assert again == dict(results[0].values)


def test_with_the_effect_removed_it_is_not_reproduced() -> None:
    removed = replace(SMALL.without_effect(), rates=(0.3,))
    conclusion = removed.conclude(run_here(removed))
    assert conclusion.verdict is Verdict.NOT_REPRODUCED
    assert conclusion.effects[0].interval.estimate == pytest.approx(1, abs=1e-12)


def test_drift_is_in_widths_of_the_unit_whatever_its_scale() -> None:
    middle = np.array([0.0, 1.0, 0.0, 3.0])  # wanders over 3 and walks 1 + 1 + 3
    moving = np.stack([middle - 1, middle, middle + 1], axis=1)
    still = np.tile([-1.0, 0.0, 1.0], (4, 1))
    excursion, path = drift(np.stack([moving, 1000 * moving - 7, still], axis=2))
    assert excursion == pytest.approx([1.5, 1.5, 0])
    assert path == pytest.approx([2.5, 2.5, 0])


def test_a_width_that_grows_is_drift_though_the_median_stands_still() -> None:
    growing = np.array([[-1.0, 0, 1], [-3, 0, 3]])[:, :, None]
    excursion, _ = drift(growing)
    assert excursion == pytest.approx([(2 + 0 + 2) / 3 / 4])


def test_looking_leaves_the_training_as_it_is() -> None:
    # More looks must not move a weight or a running statistic: the accuracies of common looks are the same.
    run = SMALL.plan([0], DIGITS)[0]
    often = replace(SMALL, steps=60, every=10).execute(run, lambda done, note: None)
    seldom = replace(SMALL, steps=60, every=20).execute(run, lambda done, note: None)
    assert seldom["steps"] == [0, 20, 40, 60]
    assert isinstance(often["validation"], list)
    assert often["validation"][1::2] == seldom["validation"]
    assert often["test"] == seldom["test"] or max(often["validation"]) > max(often["validation"][1::2])


def test_images_become_binary_by_one_threshold() -> None:
    parts = binarised(split(DIGITS, 0))
    for images, _ in (parts.train, parts.validation, parts.test):
        assert set(images.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(parts.train[1], split(DIGITS, 0).train[1])


def _concluded(
    norm: float,
    noise: float = 0.02,
    best: float = 0.9,
    *,
    plain_best: float = 0.9,
    guessing: float = 0.1,
    away: tuple[list[float], list[float]] = ([0.1, 0.1, 0.0], [0.5, 0.5, 0.0]),
    wide: float = 1.0,
) -> Conclusion:
    claim = SigmoidDistribution(rates=(0.3,))
    results = []
    for run in claim.plan(range(5), DIGITS):
        ours = run.arm.startswith("norm")
        value = norm * float(np.exp(noise * wave(run.seed))) if ours else 1.0
        reached = best if ours else plain_best
        values: dict[str, float | list[float]] = {"best": reached, "test": reached, "drift, running statistics": value}
        for layer in (1, 2, 3):
            values |= {f"drift {layer}": value, f"drift {layer}, upper tenth": value, f"path {layer}": value}
        values |= {"steps": [0.0, 1.0, 2.0], "away": away[0] if ours else away[1], **baseline_of(guessing)}
        values |= {"typical 15": [-0.1, 0.0, -0.1 * wide], "typical 50": [0.0] * 3, "typical 85": [0.1, 1, 0.1 * wide]}
        results.append(Result(run, values))
    return claim.conclude(results)


def _conclude(norm: float, noise: float = 0.02, best: float = 0.9, plain_best: float = 0.9) -> Verdict:
    return _concluded(norm, noise, best, plain_best=plain_best).verdict


def test_conclude_reaches_every_verdict() -> None:
    assert _conclude(0.4) is Verdict.REPRODUCED
    assert _conclude(1.0) is Verdict.NOT_REPRODUCED
    assert _conclude(0.9) is Verdict.NOT_REPRODUCED  # some, but not a quarter
    assert _conclude(0.7, noise=1.0) is Verdict.INCONCLUSIVE


def test_a_network_that_learns_nothing_is_not_called_stable() -> None:
    assert _conclude(0.1, best=0.2) is Verdict.INCONCLUSIVE
    assert _conclude(0.1, plain_best=0.2) is Verdict.INCONCLUSIVE
    assert _conclude(0.1, best=0.46) is Verdict.REPRODUCED  # of ten classes: less than half, and learnt
    noise = _concluded(0.1, best=0.97, plain_best=0.97, guessing=0.97)
    assert noise.verdict is Verdict.INCONCLUSIVE
    assert "stayed at 97.0% validation accuracy, where guessing gives 97.0%" in noise.reason


def test_the_title_says_what_the_lines_show() -> None:
    def title(ours: list[float], plain: list[float]) -> str:
        chart = _concluded(0.4, away=(ours, plain)).charts[1]  # reproduced, whatever these lines are
        assert isinstance(chart, Curves)
        return chart.title

    assert title([0.1, 0.1, 0.0], [0.5, 0.5, 0.0]).startswith("All units: at 2 of 2 looks the inputs are closer")
    assert title([0.1, 0.5, 0.0], [0.5, 0.1, 0.0]) == "All units: how far the inputs are from their final distribution"


def test_that_the_plain_nets_units_spread_out_is_said_where_they_do() -> None:
    assert "from 0.2 between the 15th and the 85th percentile to 2" in _concluded(0.4, wide=10.0).findings[2]
    assert "spreads out" not in _concluded(0.4, wide=1.0).findings[2]
