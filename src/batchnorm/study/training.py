"""One small, honest training loop: deterministic per seed, equal in both arms but for what is compared.

The seed decides initialisation and batch order, and nothing else draws random numbers: batch norm's parameters
start as constants, so a network with it starts from the same convolution weights as one without.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .. import BatchNorm2d
from .claim import Report
from .data import Split

__all__ = ["History", "Recipe", "accuracy", "convolutional", "train"]


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Args:
        learning_rate: Constant over the run.
        optimizer: "sgd" (momentum 0.9) or "adam".
        steps: Updates.
        batch_size: Images an update.
        every: Steps between two looks at the validation split.
    """

    learning_rate: float
    optimizer: str = "sgd"
    steps: int = 500
    batch_size: int = 60
    every: int = 10


@dataclass(frozen=True)
class History:
    """What a training showed.

    Args:
        steps: After how many updates the validation split was looked at.
        validation: Accuracy on it then.
        test: Accuracy on the test split of the weights that were best on the validation split: the only time
            the test split is used.
        diverged: Whether the loss became NaN or infinite.
    """

    steps: Sequence[int]
    validation: Sequence[float]
    test: float
    diverged: bool


def convolutional(
    layers: Sequence[tuple[int, int]], *, activation: str, norm: bool, classes: int, seed: int
) -> nn.Sequential:
    """A plain stack of 3×3 convolutions, each with its activation, then an average over space and a linear layer.

    Args:
        layers: Channels and stride of each convolution.
        activation: "relu" (He's initialisation) or "sigmoid" (Glorot's).
        norm: Whether batch norm stands between each convolution and its activation.
        classes: Outputs.
        seed: Decides the weights, which are the same with and without batch norm.
    """
    generator = torch.Generator().manual_seed(seed)
    parts: list[nn.Module] = []
    channels = 1
    for width, stride in layers:
        # The bias stays in both arms: batch norm cancels it, and the arms differ in one thing only.
        convolution = nn.Conv2d(channels, width, 3, stride, padding=1)
        if activation == "relu":
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu", generator=generator)
        else:
            nn.init.xavier_normal_(convolution.weight, generator=generator)
        nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
        parts.append(convolution)
        if norm:
            parts.append(BatchNorm2d(width))
        parts.append(nn.ReLU() if activation == "relu" else nn.Sigmoid())
        channels = width
    head = nn.Linear(channels, classes)
    nn.init.xavier_normal_(head.weight, generator=generator)
    nn.init.zeros_(head.bias)
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of images classified rightly in evaluation mode; the model's mode is kept."""
    before = model.training
    model.eval()
    right = sum(
        int((model(part).argmax(1) == wanted).sum())
        for part, wanted in zip(images.split(500), labels.split(500), strict=True)
    )
    model.train(before)
    return right / len(labels)


def train(model: nn.Module, split: Split, recipe: Recipe, *, seed: int, report: Report) -> History:
    """Trains a model in place and looks at the validation split every few steps.

    A run whose loss is not finite is not updated again; from there on its validation accuracy counts as 0.
    """
    images, labels = split.train
    rate = recipe.learning_rate
    optimizer: torch.optim.Optimizer = (
        torch.optim.Adam(model.parameters(), rate)
        if recipe.optimizer == "adam"
        else torch.optim.SGD(model.parameters(), rate, momentum=0.9)
    )
    loss_of = nn.CrossEntropyLoss()
    per_epoch = len(labels) // recipe.batch_size
    generator = torch.Generator().manual_seed(seed)
    epochs = math.ceil(recipe.steps / per_epoch)
    orders = [torch.randperm(len(labels), generator=generator) for _ in range(epochs)]
    looks, seen = [], []
    best, best_weights, diverged = -1.0, copy.deepcopy(model.state_dict()), False
    model.train()
    for step in range(1, recipe.steps + 1):
        if not diverged:
            epoch, place = divmod(step - 1, per_epoch)
            chosen = orders[epoch][place * recipe.batch_size : (place + 1) * recipe.batch_size]
            loss = loss_of(model(images[chosen]), labels[chosen])
            diverged = not bool(torch.isfinite(loss))
        if not diverged:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if step % recipe.every == 0 or step == recipe.steps:
            looks.append(step)
            seen.append(0.0 if diverged else accuracy(model, *split.validation))
            if seen[-1] > best:
                best, best_weights = seen[-1], copy.deepcopy(model.state_dict())
            report(step / recipe.steps, f"step {step}/{recipe.steps}, validation {100 * seen[-1]:.1f}%")
    model.load_state_dict(best_weights)
    return History(looks, seen, accuracy(model, *split.test), diverged)
