"""One small network many times over, so that a whole grid of learning rates is trained for the price of one run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from ... import BatchNorm1d

__all__ = ["Copies", "losses_of"]


class Copies(nn.Module):
    """One small ReLU network several times, side by side, so that every learning rate is trained at once.

    All copies start from the same weights and see the same input. No copy touches another: batch norm keeps its
    statistics, gamma and beta for each feature of each copy.

    Args:
        sizes: Inputs, hidden layers, outputs.
        copies: How many.
        norm_first: Whether batch norm is the first layer.
        seed: Decides the weights (He's initialisation), the same with and without batch norm.
    """

    def __init__(self, sizes: Sequence[int], copies: int, *, norm_first: bool, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.copies = copies
        self.norm = BatchNorm1d(copies * sizes[0]) if norm_first else None
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for inputs, outputs in pairwise(sizes):
            one = torch.randn(inputs, outputs, generator=generator) * math.sqrt(2 / inputs)
            self.weights.append(one.repeat(copies, 1, 1))
            self.biases.append(torch.zeros(copies, 1, outputs))

    def forward(self, features: Tensor) -> Tensor:
        """Takes (N, F) and gives (copies, N, classes)."""
        hidden = features.repeat(1, self.copies)  # (N, copies·F)
        if self.norm is not None:
            hidden = self.norm(hidden)
        hidden = hidden.reshape(len(features), self.copies, -1).transpose(0, 1)  # (copies, N, F)
        for place, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = torch.baddbmm(bias, torch.relu(hidden) if place else hidden, weight)
        return hidden

    def step(self, velocities: Sequence[Tensor], rates: Tensor, momentum: float = 0.9) -> None:
        """Updates every copy by gradient descent with momentum, at its own rate; as torch.optim.SGD does."""
        with torch.no_grad():
            for parameter, velocity in zip(self.parameters(), velocities, strict=True):
                assert parameter.grad is not None
                velocity.mul_(momentum).add_(parameter.grad)
                # Of every parameter the first axis is the copy, or the copies' features one after another.
                share = rates.repeat_interleave(len(parameter) // self.copies)
                parameter.sub_(share.reshape(-1, *[1] * (parameter.dim() - 1)) * velocity)


def losses_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of each copy, (copies,)."""
    each = nn.functional.cross_entropy(logits.transpose(1, 2), labels.expand(len(logits), -1), reduction="none")
    return each.mean(dim=1)
