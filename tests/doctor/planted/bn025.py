"""Few samples a norm, many a step of the optimizer."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import batchnorm
from doctor.plant import Case, healthy, planted


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))


def batches(samples: int) -> list[torch.Tensor]:
    return [torch.randn(samples, 3, 12, 12) for _ in range(2)]


@planted("BN025", "")
def eight_times_four() -> Case:
    return Case(network(), batches(4), options={"accumulation_steps": 8})


@planted("BN025", "")
def sixteen_times_eight_from_a_loader() -> Case:
    loader = DataLoader(TensorDataset(torch.randn(32, 3, 12, 12)), batch_size=8)
    return Case(batchnorm.convert(network(), "sync"), loader, options={"accumulation_steps": 16})


@healthy("BN025")
def enough_in_each() -> Case:
    return Case(network(), batches(16), options={"accumulation_steps": 64})


@healthy("BN025")
def small_but_not_accumulated() -> Case:
    return Case(network(), batches(4))


@healthy("BN025")
def frozen_or_renormalised() -> Case:
    model = batchnorm.convert(network(), "renorm", where=lambda path, _: path == "1")
    batchnorm.freeze(model, where=lambda path, _: path == "4")
    return Case(model, batches(4), options={"accumulation_steps": 8})


@healthy("BN025", ranks=2)
def eight_on_each_rank_synchronised() -> Case:
    return Case(batchnorm.convert(network(), "sync"), batches(8), options={"accumulation_steps": 8})
