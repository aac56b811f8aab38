"""Statistics that move twice in one step."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import batchnorm
from doctor.plant import Case, healthy, planted


class Checkpointed(nn.Module):
    """A block whose forward pass is computed again in the backward pass."""

    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU())

    def forward(self, input: Tensor) -> Tensor:
        return checkpoint(self.block, self.first(input), use_reentrant=self.reentrant)


def batches() -> list[Tensor]:
    return [torch.randn(8, 3, 8, 8) for _ in range(2)]


@planted("BN005", "block.1")
def checkpointing() -> Case:
    return Case(Checkpointed(reentrant=False), batches())


@planted("BN005", "block.1")
def reentrant_checkpointing_of_a_sync_norm() -> Case:
    model = Checkpointed(reentrant=True)
    model.block[1] = nn.SyncBatchNorm(4, momentum=None)
    return Case(model, batches())


class OwnNorm(nn.BatchNorm2d):
    """Computes something else."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


@planted("BN005", "block.1")
def checkpointing_of_a_subclass() -> Case:
    model = Checkpointed(reentrant=False)
    model.block[1] = OwnNorm(4)
    return Case(model, batches())


class Twice(nn.Module):
    """Two forward passes a step, whose outputs are compared."""

    def __init__(self, *, noise: float) -> None:
        super().__init__()
        self.noise = noise
        self.norm, self.dropout = nn.BatchNorm1d(4), nn.Dropout(0.5)

    def forward(self, input: Tensor) -> Tensor:
        other = input + self.noise * torch.randn_like(input)
        return self.dropout(self.norm(input)) - self.dropout(self.norm(other))


@planted("BN005", "norm")
def two_passes_of_one_batch() -> Case:
    return Case(Twice(noise=0.0), [torch.randn(32, 4)])


@healthy("BN005")
def two_passes_of_different_batches() -> Case:
    return Case(Twice(noise=1.0), [torch.randn(32, 4)])


@healthy("BN005")
def two_passes_of_one_batch_through_a_frozen_layer() -> Case:
    model = Twice(noise=0.0)
    batchnorm.freeze(model)
    return Case(model, [torch.randn(32, 4)])


@healthy("BN005")
def two_branches_that_begin_at_zero() -> Case:
    # What reaches the layer is equal as long as nothing is trained.
    model = Twice(noise=1.0)
    first = nn.Linear(4, 4, bias=False)
    nn.init.zeros_(first.weight)
    model.norm = nn.Sequential(first, model.norm)
    return Case(model, [torch.randn(32, 4)])


@healthy("BN005")
def checkpointing_with_our_layers() -> Case:
    return Case(batchnorm.convert(Checkpointed(reentrant=False), "batch"), batches())


@healthy("BN005")
def checkpointing_of_frozen_layers() -> Case:
    model = Checkpointed(reentrant=False)
    batchnorm.freeze(model)
    return Case(model, batches())
