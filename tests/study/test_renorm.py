import pytest
import torch

from batchnorm.report.chart import Intervals, Panels
from batchnorm.study import Conclusion, Result, Verdict
from batchnorm.study.apparatus.averaged import Averaged
from batchnorm.study.claims.renorm import Renorm, by_class_pairs
from batchnorm.study.data import split
from batchnorm.study.subjects import Dense
from study.helpers import DIGITS, baseline_of, run_here, wave

SMALL = Renorm(subject=Averaged(Dense((16,))), steps=60, rates=(0.1,), share=0.0)


def test_with_the_effect_removed_it_is_not_reproduced() -> None:
    removed = SMALL.without_effect()
    results = run_here(removed, seeds=range(2))
    arms = {(result.run.arm, result.run.seed): dict(result.values) for result in results}
    for setting in ("tiny", "pairs"):
        assert all(arms[f"renorm {setting} 0.1", seed] == arms[f"batch {setting} 0.1", seed] for seed in range(2))
    assert removed.conclude(results).verdict is Verdict.NOT_REPRODUCED


def test_a_small_run_is_deterministic_and_its_arms_differ() -> None:
    results = run_here(SMALL, seeds=range(2))
    pairs = next(result for result in results if result.run.arm == "renorm pairs 0.1")
    assert SMALL.execute(pairs.run, lambda done, note: None) == dict(pairs.values)
    losses = [result.numbers("losses") for result in results if result.run.seed == 0]
    assert len({tuple(found) for found in losses}) == 6
    assert [type(chart) for chart in SMALL.conclude(results).charts] == [Intervals, Intervals, Panels]


def test_batches_are_of_two_classes_and_an_epoch_holds_every_image() -> None:
    labels = split(DIGITS, 0).train[1]
    order = by_class_pairs(labels, torch.Generator().manual_seed(0), 16)
    assert len(order) >= len(labels)
    assert set(order.tolist()) == set(range(len(labels)))
    batches = [labels[batch] for batch in order.split(32)]
    assert all(len(batch[:16].unique()) == len(batch[16:].unique()) == 1 for batch in batches[:-1])
    mixed = [len(batch.unique()) == 2 for batch in batches[:-2]]
    assert sum(mixed) > 0.8 * len(mixed)
    assert len({tuple(batch[::16].tolist()) for batch in batches}) > 10  # other classes each time
    assert torch.equal(order, by_class_pairs(labels, torch.Generator().manual_seed(0), 16))
    assert not torch.equal(order, by_class_pairs(labels, torch.Generator().manual_seed(1), 16))


def test_a_class_of_few_images_fills_its_block_with_them_again() -> None:
    labels = torch.tensor([0] * 5 + [1] * 2)
    order = by_class_pairs(labels, torch.Generator().manual_seed(0), 4)
    assert len(order) == 12
    assert sorted(labels[block].unique().tolist() for block in order.split(4)) == [[0], [0], [1]]
    assert set(order.tolist()) == set(range(7))


def _concluded(tiny: float, pairs: float, noise: float = 0.001, trained: float = 0.95) -> Conclusion:
    claim = Renorm(rates=(0.1, 0.3))
    results = []
    for run in claim.plan(range(5), DIGITS):
        name, rate = run.arm.rsplit(" ", 1)
        won = {"renorm tiny": tiny, "renorm pairs": pairs, "whole": 0.05}.get(name, 0.0)
        # The second rate is worse on validation and better on test, which must not matter.
        worse = rate == "0.3"
        test = 1.0 if worse else 0.9 + won + noise * wave(run.seed) * name.startswith("renorm")
        values = {
            "best": trained - 0.1 * worse,
            "test": test,
            "test anew": test,
            "train": 1.0,
            "losses": [0.5, 0.1],
            "diverged": False,
        }
        results.append(Result(run, values | baseline_of(0.1)))
    return claim.conclude(results)


def test_conclude_reaches_every_verdict() -> None:
    held = _concluded(0.02, 0.04)
    assert held.verdict is Verdict.REPRODUCED
    assert held.charts[0].title.endswith("batch renorm is better than batch norm")
    refuted = _concluded(0.02, -0.01)
    assert refuted.verdict is Verdict.NOT_REPRODUCED
    assert refuted.effects[0].name.endswith("batch renorm, two classes, minus batch norm, two classes")
    assert refuted.effects[0].interval.estimate == pytest.approx(-1, abs=0.1)
    assert refuted.charts[0].title.startswith("Test accuracy, compared")
    assert _concluded(0.001, 0.02, noise=0.03).verdict is Verdict.INCONCLUSIVE
    unlearnt = _concluded(0.02, 0.02, trained=0.2)
    assert unlearnt.verdict is Verdict.INCONCLUSIVE
    assert "stayed at 20.0% validation accuracy" in unlearnt.reason


def test_what_there_is_to_mend_is_told_in_words_that_fit() -> None:
    found = _concluded(0.02, 0.04, noise=0.0).findings[1]
    assert "In parts of 4 batch norm loses to the upper bound: −5.00 (−5.00 to −5.00) points with batch norm" in found
    assert "−3.00 (−3.00 to −3.00) with batch renorm" in found
