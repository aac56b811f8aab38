"""Networks as a user may have them, for images of 8×8 with ten classes unless they say otherwise."""

import random

import torch
from torch import nn

import batchnorm


class Small(nn.Module):
    """Torch's norms, no Sequential, a residual sum and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.act = nn.ReLU(inplace=True)
        self.body = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.drop, self.head = nn.Dropout(0.1), nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.norm1(self.stem(x)))
        x = torch.relu(self.norm2(self.body(x)) + x)
        return self.head(self.drop(x.mean((2, 3))))


class Functional(Small):
    """No activation is a module."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm1(self.stem(x)))
        x = torch.relu(self.norm2(self.body(x)) + x)
        return self.head(x.mean((2, 3)))


def small() -> nn.Module:
    return Small()


def functional() -> nn.Module:
    return Functional()


def raising() -> nn.Module:
    raise ValueError("no weights here")


def number() -> int:
    return 3


def without_norm() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def for_other_images() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(784), nn.Linear(784, 10))


def too_few_classes() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 4))


def a_map() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 10, 1), nn.BatchNorm2d(10))


class Auxiliary(Small):
    """Two outputs in training, as Inception has them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        output = super().forward(x)
        return (output, output) if self.training else output


_SHARED = Small()


def shared() -> nn.Module:
    return _SHARED


def drawn_elsewhere() -> nn.Module:
    model = Small()
    model.head.bias.data.fill_(random.random())
    return model


def auxiliary() -> nn.Module:
    return Auxiliary()


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyConv2d(4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(10))


def frozen() -> nn.Module:
    model = Small()
    batchnorm.freeze(model)
    return model


def double() -> nn.Module:
    return Small().double()
