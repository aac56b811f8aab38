from dataclasses import replace

import pytest

from batchnorm.report.chart import Curves, Intervals
from batchnorm.study import Conclusion, Result, Verdict
from batchnorm.study.apparatus.averaged import Averaged
from batchnorm.study.claims.ghost import Ghost
from batchnorm.study.subjects import Dense
from study.helpers import DIGITS, baseline_of, run_here, wave

SMALL = Ghost(
    subject=Averaged(Dense((16,))),
    small=16,
    large=64,
    updates=60,
    small_rates=(0.3,),
    epoch_rates=(0.3,),
    update_rates=(0.3,),
    share=0.0,
)


def test_with_the_effect_removed_it_is_not_reproduced() -> None:
    removed = SMALL.without_effect()
    results = run_here(removed, seeds=range(2))
    arms = {(result.run.arm, result.run.seed): dict(result.values) for result in results}
    for length in ("epochs", "updates"):
        assert all(arms[f"ghost {length} 0.3", seed] == arms[f"batch {length} 0.3", seed] for seed in range(2))
    assert removed.conclude(results).verdict is Verdict.NOT_REPRODUCED


def test_a_small_run_is_deterministic_and_its_arms_differ() -> None:
    results = run_here(SMALL, seeds=range(2))
    assert SMALL.execute(results[0].run, lambda done, note: None) == dict(results[0].values)
    losses = {result.run.arm: result.numbers("losses") for result in results if result.run.seed == 0}
    assert len({tuple(found) for found in losses.values()}) == 5
    # Of each run the mean loss of every tenth is kept. 60 updates of 16 images are 15 of 64: as many images in all.
    assert len(losses["batch updates 0.3"]) == len(losses["batch epochs 0.3"]) == 10
    short = replace(SMALL, updates=20)
    (run,) = [run for run in short.plan([0], DIGITS) if run.arm == "batch epochs 0.3"]
    assert len(short.execute(run, lambda done, note: None)["losses"]) == 5  # type: ignore[arg-type]
    kinds = [type(chart) for chart in SMALL.conclude(results).charts]
    assert kinds == [Intervals, Intervals, Curves]


def _concluded(
    epochs: float, updates: float, noise: float = 0.001, trained: float = 0.95, fitted: float = 1.0
) -> Conclusion:
    claim = Ghost(epoch_rates=(0.3, 1.0), update_rates=(0.3, 1.0), small_rates=(0.1,))
    results = []
    for run in claim.plan(range(5), DIGITS):
        name, rate = run.arm.rsplit(" ", 1)
        won = {"ghost epochs": epochs, "ghost updates": updates, "small": 0.02}.get(name, 0.0)
        # The second rate is worse on validation and better on test, which must not matter.
        worse = rate == "1"
        test = 1.0 if worse else 0.9 + won + noise * wave(run.seed) * (name != "batch epochs")
        values = {
            "best": trained - 0.1 * worse,
            "test": test,
            "train": fitted if name == "batch epochs" else 1.0,
            "losses": [0.5, 0.0],
            "diverged": False,
        }
        results.append(Result(run, values | baseline_of(0.1)))
    return claim.conclude(results)


def test_conclude_reaches_every_verdict() -> None:
    held = _concluded(0.02, 0.01)
    assert held.verdict is Verdict.REPRODUCED
    assert held.charts[0].title.startswith("Ghost batches win test accuracy")
    refuted = _concluded(0.02, -0.01)
    assert refuted.verdict is Verdict.NOT_REPRODUCED
    assert refuted.effects[0].name == "Test accuracy, ghost batches minus whole, equal updates"
    assert refuted.effects[0].interval.estimate == pytest.approx(-1)
    assert refuted.charts[0].title.startswith("Test accuracy: the small batch")
    unclear = _concluded(0.001, 0.02, noise=0.03)
    assert unclear.verdict is Verdict.INCONCLUSIVE
    assert "equal epochs" in unclear.effects[0].name


def test_a_large_batch_that_has_not_learnt_settles_nothing() -> None:
    conclusion = _concluded(0.02, 0.02, trained=0.2)
    assert conclusion.verdict is Verdict.INCONCLUSIVE
    assert "stayed low: 20.0% validation accuracy" in conclusion.reason


def test_what_there_is_to_win_back_is_told_in_words_that_fit() -> None:
    findings = _concluded(0.02, 0.01, noise=0.0).findings
    assert "At equal epochs the large batch loses test accuracy" in findings[1]
    assert "small batch minus whole large one is +2.00 (+2.00 to +2.00) points" in findings[1]
    assert findings[1].endswith("On training images the small batch has 100.0%, the whole large one 100.0%.")
    less = _concluded(0.02, 0.01, fitted=0.9).findings
    assert "100.0%, the whole large one 90.0%: it has learnt these less" in less[1]
    assert "learnt these less" not in less[2]
    assert "they are 3.0 times those of the small batch" in findings[3]
    assert "the paper's rule says 5.7" in findings[3]
