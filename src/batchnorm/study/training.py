"""One small, honest training loop: deterministic per seed, equal in both arms but for what is compared.

The seed decides the batch order, and what dropout drops where a network has it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .claim import Report, Value
from .data import Split

__all__ = ["History", "Recipe", "accuracy", "shuffled", "train"]


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Args:
        learning_rate: At the first update.
        optimizer: "sgd" or "adam".
        steps: Updates.
        batch_size: Images an update.
        every: Steps between two looks at the validation split.
        momentum: Of "sgd".
        weight_decay: Of every weight, added to its gradient.
        decay: Whether the rate falls in a straight line to 0 at the end of the run; otherwise it is constant. What
            is compared after a fixed number of steps then depends less on the noise of the last few.
    """

    learning_rate: float
    optimizer: str = "sgd"
    steps: int = 500
    batch_size: int = 60
    every: int = 10
    decay: bool = False
    momentum: float = 0.9
    weight_decay: float = 0.0


@dataclass(frozen=True)
class History:
    """What a training showed.

    Args:
        steps: After how many updates the validation split was looked at.
        validation: Accuracy on it then.
        test: Accuracy on the test split of the weights that were best on the validation split: the only time
            the test split is used. 0 where the run diverged before the first look, since there are no such weights.
        diverged: Whether the loss or a weight became NaN or infinite.
        losses: Of each update's batch, before it; up to the one that was not finite.
    """

    steps: Sequence[int]
    validation: Sequence[float]
    test: float
    diverged: bool
    losses: Sequence[float]

    def values(self) -> dict[str, Value]:
        """The same as what a run keeps, with the best accuracy on the validation split."""
        return {
            "steps": [float(step) for step in self.steps],
            "validation": list(self.validation),
            "best": max(self.validation),
            "test": self.test,
            "diverged": self.diverged,
        }


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of images classified rightly in evaluation mode; the model's mode is kept.

    An image whose outputs are not all finite counts as wrong: the largest of NaNs is the first, which names a class.
    """
    before = model.training
    model.eval()
    right = 0
    for part, wanted in zip(images.split(500), labels.split(500), strict=True):
        outputs = model(part)
        right += int(((outputs.argmax(1) == wanted) & outputs.isfinite().all(1)).sum())
    model.train(before)
    return right / len(labels)


def shuffled(labels: Tensor, generator: torch.Generator) -> Tensor:
    """An order of all images, anew for each epoch."""
    return torch.randperm(len(labels), generator=generator)


def train(
    model: nn.Module,
    split: Split,
    recipe: Recipe,
    *,
    seed: int,
    report: Report,
    watch: Callable[[int], None] = lambda step: None,
    before: Callable[[int, Tensor, Tensor], None] = lambda step, images, labels: None,
    order: Callable[[Tensor, torch.Generator], Tensor] = shuffled,
) -> History:
    """Trains a model in place and looks at the validation split every few steps.

    A run whose loss or weights are not finite is not updated again; from there on its validation accuracy counts as 0.
    It ends with the weights that were best before, or with those it began with if it was never looked at before.

    Args:
        model: In training mode afterwards, in the state of its best look.
        split: The data.
        recipe: How.
        seed: Decides the order of the images, and what the network itself draws.
        report: Told where it is.
        watch: Called at each look with the step, to measure what the model holds; it leaves the model as it was.
        before: Called before each update with its step and its batch, the model in training mode; what it leaves
            changed is in force for the update.
        order: Gives an epoch's order from the labels; what is left over of the last batch is not used.
    """
    # Dropout, which a network of the user's may have, knows no generator but torch's own: it is afterwards as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        images, labels = split.train
        rate = recipe.learning_rate
        optimizer: torch.optim.Optimizer = (
            torch.optim.Adam(model.parameters(), rate, weight_decay=recipe.weight_decay)
            if recipe.optimizer == "adam"
            else torch.optim.SGD(model.parameters(), rate, recipe.momentum, weight_decay=recipe.weight_decay)
        )
        loss_of = nn.CrossEntropyLoss()
        per_epoch = len(labels) // recipe.batch_size
        generator = torch.Generator().manual_seed(seed)
        epochs = math.ceil(recipe.steps / per_epoch)
        orders = [order(labels, generator) for _ in range(epochs)]
        looks, seen, losses = [], [], []
        best, best_weights, diverged = -1.0, copy.deepcopy(model.state_dict()), False
        model.train()
        for step in range(1, recipe.steps + 1):
            if not diverged:
                epoch, place = divmod(step - 1, per_epoch)
                chosen = orders[epoch][place * recipe.batch_size : (place + 1) * recipe.batch_size]
                batch, wanted = images[chosen], labels[chosen]
                before(step, batch, wanted)
                loss = loss_of(model(batch), wanted)
                losses.append(loss.item())
                diverged = not math.isfinite(losses[-1])
            if not diverged:
                if recipe.decay:
                    for group in optimizer.param_groups:
                        group["lr"] = rate * (1 - (step - 1) / recipe.steps)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            if step % recipe.every == 0 or step == recipe.steps:
                # An update may have made weights infinite, which the loss would show only at the next one.
                diverged = diverged or not all(bool(weight.isfinite().all()) for weight in model.parameters())
                looks.append(step)
                seen.append(0.0 if diverged else accuracy(model, *split.validation))
                if not diverged and seen[-1] > best:
                    best, best_weights = seen[-1], copy.deepcopy(model.state_dict())
                watch(step)
                report(step / recipe.steps, f"step {step}/{recipe.steps}, validation {100 * seen[-1]:.1f}%")
        model.load_state_dict(best_weights)
        test = accuracy(model, *split.test) if best >= 0 else 0.0
        return History(looks, seen, test, diverged, losses)
