import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from batchnorm import BatchNorm2d
from batchnorm.study.data import split
from batchnorm.study.networks import convolutional
from batchnorm.study.training import Recipe, accuracy, train
from study.helpers import DIGITS

LAYERS = ((4, 2), (8, 1))


@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
def test_both_arms_start_from_the_same_weights(activation: str) -> None:
    plain = convolutional(LAYERS, activation=activation, norm="none", channels=1, classes=10, seed=5)
    normed = convolutional(LAYERS, activation=activation, norm="before", channels=1, classes=10, seed=5)
    assert sum(isinstance(module, BatchNorm2d) for module in normed) == 2
    own = [p for module in normed if not isinstance(module, BatchNorm2d) for p in module.parameters()]
    for ours, theirs in zip(own, plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_training_is_bitwise_the_same_again_and_learns() -> None:
    parts = split(DIGITS, 0)
    histories = []
    for noise in (1, 2):
        torch.manual_seed(noise)  # the global generator must not matter
        model = convolutional(LAYERS, activation="relu", norm="before", channels=1, classes=10, seed=0)
        recipe = Recipe(0.05, steps=60, every=20)
        histories.append(train(model, parts, recipe, seed=0, report=lambda done, note: None))
    assert histories[0] == histories[1]
    assert histories[0].steps == [20, 40, 60]
    assert max(histories[0].validation) > 0.25  # chance is 0.1


def test_both_arms_see_the_same_batches() -> None:
    seen: dict[bool, list[float]] = {}
    for norm in (False, True):
        model = convolutional(
            LAYERS, activation="relu", norm="before" if norm else "none", channels=1, classes=10, seed=0
        )
        sums: list[float] = []
        model.register_forward_pre_hook(
            lambda module, inputs, sums=sums: sums.append(float(inputs[0].sum())) if module.training else None
        )
        train(model, split(DIGITS, 0), Recipe(0.01, steps=25, every=25), seed=0, report=lambda done, note: None)
        seen[norm] = sums
    assert len(seen[True]) == 25
    assert seen[False] == seen[True]


def test_a_run_that_diverges_says_so_and_counts_as_zero() -> None:
    model = convolutional(LAYERS, activation="relu", norm="none", channels=1, classes=10, seed=0)
    recipe = Recipe(1e20, steps=20, every=10)
    history = train(model, split(DIGITS, 0), recipe, seed=0, report=lambda done, note: None)
    assert history.diverged
    assert history.validation[-1] == 0.0


def test_an_image_whose_outputs_are_not_finite_counts_as_wrong() -> None:
    class Broken(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            outputs = torch.eye(3)[torch.zeros(len(images), dtype=torch.long)]
            outputs[1], outputs[2, 0], outputs[3, 1] = math.nan, math.inf, -math.inf
            return outputs

    # All five are named class 0, the NaNs too: they are their own largest value, and the first of them wins.
    assert accuracy(Broken(), torch.zeros(5, 1), torch.zeros(5, dtype=torch.long)) == 2 / 5


@pytest.mark.parametrize("every", [1, 3])
def test_weights_that_stopped_being_finite_are_noticed_at_once_and_never_the_best(every: int) -> None:
    # The loss of the first step is finite, and its update makes every weight infinite.
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    start = [parameter.detach().clone() for parameter in model.parameters()]
    parts = split(DIGITS, 0)
    bright = replace(parts, train=(1e4 * parts.train[0], parts.train[1]))
    recipe = Recipe(3e38, steps=every, every=every)
    history = train(model, bright, recipe, seed=0, report=lambda done, note: None)
    assert history.diverged
    assert history.validation == [0.0]
    assert history.test == 0.0
    assert all(torch.equal(now, then) for now, then in zip(model.parameters(), start, strict=True))


def test_a_run_that_diverges_late_ends_with_the_weights_that_were_best_before() -> None:
    parts = split(DIGITS, 0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    def spoil(step: int) -> None:
        if step == 40:
            with torch.no_grad():
                model[1].bias += math.inf

    history = train(model, parts, Recipe(0.05, steps=60, every=20), seed=0, report=lambda d, n: None, watch=spoil)
    assert history.diverged
    assert history.validation[-1] == 0.0
    assert accuracy(model, *parts.validation) == max(history.validation) > 0.5
    assert history.test == accuracy(model, *parts.test)


def test_the_test_split_is_used_once_with_the_best_weights() -> None:
    parts = split(DIGITS, 0)
    uses = 0

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = convolutional(LAYERS, activation="relu", norm="before", channels=1, classes=10, seed=0)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            nonlocal uses
            uses += bool(torch.equal(images[0], parts.test[0][0]))
            return self.inner(images)

    train(Counting(), parts, Recipe(0.05, steps=40, every=10), seed=0, report=lambda done, note: None)
    assert uses == 1


def test_training_ends_with_the_weights_that_were_best_on_validation() -> None:
    parts = split(DIGITS, 0)
    model = convolutional(LAYERS, activation="relu", norm="none", channels=1, classes=10, seed=0)
    history = train(model, parts, Recipe(0.3, steps=60, every=5), seed=0, report=lambda done, note: None)
    assert history.validation[-1] < max(history.validation)  # or the last weights would pass for the best
    assert accuracy(model, *parts.validation) == max(history.validation)
    assert accuracy(model, *parts.test) == history.test
