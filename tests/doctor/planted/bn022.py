"""Few samples on each of several ranks."""

import torch
import torch.distributed as dist
from torch import nn

import batchnorm
from doctor.plant import Case, healthy, planted


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))


def batches(samples: int) -> list[torch.Tensor]:
    return [torch.randn(samples, 3, 12, 12) for _ in range(2)]


@planted("BN022", "", ranks=2)
def four_samples_a_rank() -> Case:
    return Case(network(), batches(4))


@planted("BN022", "", ranks=2)
def few_on_one_rank() -> Case:
    return Case(network(), batches(32 if dist.get_rank() else 8))


@healthy("BN022", ranks=2)
def synchronised() -> Case:
    return Case(batchnorm.convert(network(), "sync"), batches(4))


@healthy("BN022", ranks=2)
def enough_samples() -> Case:
    return Case(network(), batches(16))


@healthy("BN022", ranks=2)
def frozen() -> Case:
    model = network()
    batchnorm.freeze(model)
    return Case(model, batches(2))


@healthy("BN022", ranks=2)
def few_on_purpose() -> Case:
    model = network()
    model = batchnorm.convert(model, "ghost", where=lambda path, _: path == "1", ghost_size=2)
    return Case(batchnorm.convert(model, "renorm", where=lambda path, _: path == "4"), batches(4))
