"""Small networks to monitor, and steps to train them by."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import batchnorm


class Block(nn.Module):
    """Convolution, norm, sum and activation; ``mode`` says how the block is checkpointed."""

    def __init__(self, norm: nn.Module, mode: str = "") -> None:
        super().__init__()
        self.conv, self.norm, self.mode = nn.Conv2d(4, 4, 3, padding=1), norm, mode

    def inner(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x)) + x)

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x, use_reentrant=self.mode == "reentrant") if self.mode else self.inner(x)


class Shared(nn.Module):
    """One norm, called twice in a pass."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(self.norm(x)))


def plain() -> nn.Module:
    return nn.Sequential(Block(nn.BatchNorm2d(4)), Block(batchnorm.BatchNorm2d(4)))


NETWORKS = {
    "plain": plain,
    "fused": lambda: nn.Sequential(*(Block(batchnorm.FusingBatchNorm2d(4)) for _ in range(2))),
    "shared": Shared,
    "checkpointed": lambda: nn.Sequential(Block(nn.BatchNorm2d(4), "plain"), Block(batchnorm.BatchNorm2d(4), "plain")),
    "reentrant": lambda: nn.Sequential(nn.Conv2d(4, 4, 1), Block(batchnorm.BatchNorm2d(4), "reentrant")),
    "kinds": lambda: nn.Sequential(
        batchnorm.GhostBatchNorm2d(4, ghost_size=2),
        batchnorm.BatchRenorm2d(4),
        batchnorm.DomainBatchNorm2d(4),
        batchnorm.BatchNormAct2d(4),
        batchnorm.SyncBatchNorm(4),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.BatchNorm2d(4, affine=False),
        nn.LazyBatchNorm2d(),
    ),
    "frozen": lambda: _frozen(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), Block(nn.BatchNorm2d(4)))),
}


def _frozen(model: nn.Module) -> nn.Module:
    batchnorm.freeze(model)
    return model


def images(count: int = 6, seed: int = 0) -> Tensor:
    """(count, 4, 5, 5)."""
    return torch.randn(count, 4, 5, 5, generator=torch.Generator().manual_seed(seed))


def train(model: nn.Module, steps: int) -> None:
    """Steps of gradient descent on other images each."""
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), 0.05)
    for number in range(steps):
        optimizer.zero_grad()
        model(images(seed=number)).square().mean().backward()
        optimizer.step()


def hooks_of(model: nn.Module) -> list[list[object]]:
    """All that torch keeps of hooks of a module and those inside."""
    names = [name for name in vars(nn.Module()) if "hooks" in name]
    return [[dict(getattr(module, name)) for name in names] for module in model.modules()]
