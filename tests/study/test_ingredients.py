from dataclasses import replace

import pytest
import torch
from torch import nn

from batchnorm.study import Conclusion, Result, Verdict
from batchnorm.study.claims import ingredients
from batchnorm.study.claims.ingredients import INGREDIENTS, Ingredients, fixed_batches
from batchnorm.study.data import Split
from batchnorm.study.subjects import Stack
from batchnorm.study.training import History, Recipe
from study.helpers import DIGITS, baseline_of, run_here, wave

SMALL = Ingredients(subject=Stack(((8, 2),)), rates=(0.1,), steps=36, every=18)


def test_a_small_run_is_deterministic_and_draws_its_charts() -> None:
    results = run_here(SMALL, seeds=range(1))
    for result in results[:3]:
        if result.run.arm == "added 0.1":
            assert SMALL.execute(result.run, lambda done, note: None) == dict(result.values)
    conclusion = SMALL.conclude(results)
    assert len(conclusion.charts) == 2
    by_arm = {result.run.arm: result.values["validation"] for result in results}
    # All recipes are different trainings, but for L2, which so few steps may not show.
    assert len({str(seen) for arm, seen in by_arm.items() if not arm.startswith("L2")}) == 8


def test_where_all_recipes_are_alike_it_is_not_reproduced() -> None:
    removed = replace(SMALL.without_effect(), share=0.0)
    conclusion = removed.conclude(run_here(removed, seeds=range(5)))
    assert conclusion.verdict is Verdict.NOT_REPRODUCED
    assert conclusion.effects[0].interval.estimate == 1.0


def test_each_arm_takes_back_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, tuple[Recipe, float, bool]] = {}

    def train(model: nn.Module, split: Split, recipe: Recipe, *, order: object, **rest: object) -> History:
        model.train()
        torch.manual_seed(0)
        images = split.train[0][:1].repeat(2, 1, 1, 1)
        first, second = model(images)
        seen[arm] = (recipe, bool((first != second).any()), order is ingredients.shuffled)
        return History([1], [0.5], 0.5, False, [])

    monkeypatch.setattr(ingredients, "train", train)
    for run in SMALL.plan([0], DIGITS):
        arm = run.arm.split()[0]
        SMALL.execute(run, lambda done, note: None)
    whole = Recipe(0.5, steps=36, every=18, decay=True, weight_decay=1e-4)
    added = Recipe(0.1, steps=36, every=18, decay=False, weight_decay=5e-4)
    # Two copies of an image come out apart where dropout is on; the order is drawn anew where the list has it so.
    assert seen["plain"] == seen["added"] == (added, True, False)
    assert seen["whole"] == seen["listed"] == (whole, False, True)
    assert seen["rate"] == (replace(whole, learning_rate=0.1), False, True)
    assert seen["dropout"] == (whole, True, True)
    assert seen["L2"] == (replace(whole, weight_decay=5e-4), False, True)
    assert seen["decay"] == (replace(whole, decay=False), False, True)
    assert seen["shuffling"] == (whole, False, False)


def test_fixed_batches_keep_their_images_and_come_in_another_order() -> None:
    order, generator = fixed_batches(4), torch.Generator().manual_seed(0)
    epochs = [order(torch.zeros(22), generator).reshape(-1, 4) for _ in range(3)]
    assert all(epoch.shape == (5, 4) for epoch in epochs)
    batches = [[tuple(batch) for batch in epoch.tolist()] for epoch in epochs]
    assert batches[0] != batches[1] != batches[2]
    assert set(batches[0]) == set(batches[1]) == set(batches[2])
    assert len(set(epochs[0].flatten().tolist())) == 20


def _concluded(
    *,
    whole: float = 100.0,
    noise: float = 0.05,
    reached: int = 5,
    best: float = 0.9,
    items: dict[str, float] | None = None,
    points: dict[str, float] | None = None,
    dropped: bool = True,
    added: float = 200.0,
    listed: float = 250.0,
    best_at: float = 0.1,
) -> Conclusion:
    """Made-up results: steps until the accuracy of batch norm merely added, and points of accuracy."""
    claim = Ingredients()
    results = []
    for run in claim.plan(range(5), DIGITS):
        kind = run.arm.split()[0]
        takes = (
            {"added": added, "plain": 250.0, "whole": whole, "listed": listed}
            | dict.fromkeys(INGREDIENTS, whole)
            | (items or {})
        )
        own = takes[kind] * (1 + noise * wave(run.seed) * (kind not in ("plain", "added", "listed")))
        gets = kind != "whole" or run.seed < reached
        steps = [float(step) for step in range(5, 301, 5)]
        top = best if run.arm in (f"{kind} {best_at:g}", "plain 0.1") else best - 0.01
        validation = [top if step >= own and gets else best / 2 for step in steps]
        test = 0.9 + 0.01 * (points or {}).get(kind, 0.0) + 0.001 * wave(run.seed) * (kind != "whole")
        values = {"steps": steps, "validation": validation, "best": max(validation), "test": test, "dropped": dropped}
        results.append(Result(run, values | baseline_of(0.1)))
    return claim.conclude(results)


def test_conclude_reaches_every_verdict() -> None:
    assert _concluded().verdict is Verdict.REPRODUCED
    assert _concluded(whole=200.0, noise=0.0).verdict is Verdict.NOT_REPRODUCED
    assert _concluded(whole=250.0).verdict is Verdict.NOT_REPRODUCED
    assert _concluded(whole=170.0, noise=0.3).verdict is Verdict.INCONCLUSIVE
    # One seed that never gets there leaves it open, though the interval alone would do.
    late = _concluded(added=300.0, whole=150.0, noise=0.0, reached=4)
    assert late.effects[0].interval.high < 0.9
    assert late.verdict is Verdict.INCONCLUSIVE
    assert _concluded(reached=1).verdict is Verdict.NOT_REPRODUCED
    assert _concluded(best=0.2).verdict is Verdict.INCONCLUSIVE  # nothing learnt


def test_every_item_is_judged_by_itself() -> None:
    conclusion = _concluded(items={"rate": 200.0, "decay": 50.0}, points={"dropout": -2.0, "decay": 1.0})
    found = dict(zip(INGREDIENTS, conclusion.findings, strict=False))
    assert found["rate"].startswith("Back to the lower learning rate: costs steps")
    assert "no sure change in accuracy" in found["rate"]
    assert "saves steps" in found["decay"]
    assert "gains accuracy" in found["decay"]
    assert "no sure change in steps" in found["dropout"]
    assert "costs accuracy (−1.9" in found["dropout"]
    assert "no sure change in steps" in found["L2"]
    assert "no sure change in accuracy" in found["L2"]
    assert conclusion.effects[0].name == "Steps, the whole list against batch norm merely added"


def test_what_the_list_does_without_batch_norm_is_told() -> None:
    unsure = _concluded().findings[5]
    assert unsure.startswith("Without batch norm, each at its best of three rates, the whole list does not surely")
    assert unsure.count("of no sure use") == 1
    useful = _concluded(listed=100.0).findings[5]
    assert "saves steps (" not in useful
    assert "the whole list saves steps and" in useful
    assert "does not need batch norm to be of use" in useful
    mixed = _concluded(listed=100.0, points={"listed": -3.0}).findings[5]
    assert "saves steps and costs accuracy" in mixed
    assert "helps in one and harms in the other" in mixed
    assert "test accuracy changes by −3" in mixed
    assert "has not learnt" not in mixed
    assert "has not learnt in 5 of 5 seeds" in _concluded(best=0.2).findings[5]
    names = [effect.name for effect in _concluded().effects]
    assert sum("without batch norm: the whole list" in name for name in names) == 2
    more = _concluded(noise=0.0, points={"whole": 3.0, "listed": 1.0}).effects[-1]
    assert more.name.startswith("Test accuracy, what the list adds with batch norm minus")
    assert more.interval.estimate == pytest.approx(2.0, abs=0.2)


def test_rates_at_an_end_of_the_grid_are_told_of_every_search() -> None:
    text = _concluded(best_at=0.3).findings[6]
    top = "Of the chosen rates 5 are the highest and 0 the lowest of their grid, of 5"
    assert f"would itself choose 0.3, 0.3, 0.3, 0.3, 0.3. {top}" in text
    assert text.count(top) == 3
    assert text.count("No chosen rate is an end of its grid.") == 1


def test_a_network_without_a_place_for_dropout_does_not_test_it() -> None:
    findings = _concluded(dropped=False).findings
    assert findings[1] == "No place for dropout was found in this network, so that item is not tested."


class Dropping(nn.Module):
    """A network with dropout of its own, and torch's batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.25)
        self.norm = nn.BatchNorm2d(1)
        self.last = nn.Linear(64, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.last(self.drop(self.norm(images)).flatten(1))


class Its(Stack):
    def build(self, parts: Split, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return Dropping()


def test_dropout_of_the_network_itself_is_what_the_list_takes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: dict[str, float] = {}

    def train(model: Dropping, *rest: object, **others: object) -> History:
        assert not model.last._forward_pre_hooks  # no second dropout beside its own
        rates[arm] = model.drop.p
        return History([1], [0.5], 0.5, False, [])

    monkeypatch.setattr(ingredients, "train", train)
    claim = SMALL.on(Its(()))
    for run in claim.plan([0], DIGITS):
        arm = run.arm.split()[0]
        assert claim.execute(run, lambda done, note: None)["dropped"] is True
    kept = {"plain": 0.25, "added": 0.25, "dropout": 0.25}
    assert rates == kept | dict.fromkeys(("whole", "rate", "L2", "decay", "shuffling", "listed"), 0.0)
