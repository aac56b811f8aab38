"""torch's SyncBatchNorm on the CPU."""

import torch
from torch import nn

import batchnorm
from doctor.plant import Case, healthy, planted

# A model on the CPU of a machine with an accelerator may be moved there yet.
FOUND = () if torch.accelerator.is_available() else ("1",)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.SyncBatchNorm(4, momentum=0.2), nn.ReLU())


def batches() -> list[torch.Tensor]:
    return [torch.randn(4, 3, 8, 8) for _ in range(2)]


@planted("BN007", *FOUND)
def no_accelerator_here() -> Case:
    return Case(network())


@planted("BN007", *(f"model.{path}" for path in FOUND))
def converted_by_torch() -> Case:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, affine=False), nn.ReLU())
    wrapped = nn.ModuleDict({"model": nn.SyncBatchNorm.convert_sync_batchnorm(model)})
    return Case(wrapped)


@planted("BN007", "1", ranks=2)
def it_raises_in_a_process_group() -> Case:
    return Case(network(), batches())


@healthy("BN007")
def ours() -> Case:
    return Case(batchnorm.convert(network(), "sync"), batches())


@healthy("BN007", ranks=2)
def ours_in_a_process_group() -> Case:
    return Case(batchnorm.convert(network(), "sync"), batches())


@healthy("BN007", ranks=2)
def it_only_evaluates() -> Case:
    return Case(network().eval())
