"""Flags that disagree with the tensors."""

import torch
from torch import nn

import batchnorm
from doctor.plant import Case, healthy, planted


def network(momentum: float | None = 0.1) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, momentum=momentum), nn.ReLU())
    for _ in range(3):
        model(torch.randn(16, 4) + 1)
    return model


def batches() -> list[torch.Tensor]:
    return [torch.randn(16, 4) for _ in range(2)]


@planted("BN013", "1")
def untracked_with_initial_statistics() -> Case:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
    model[1].track_running_stats = False
    return Case(model, batches())


@planted("BN013", "1")
def untracked_with_statistics() -> Case:
    model = network()
    model[1].track_running_stats = False
    return Case(model)


@planted("BN013", "1")
def statistics_taken_away() -> Case:
    model = network()
    model[1].running_mean = model[1].running_var = None
    return Case(model, batches())


@planted("BN013", "1")
def ours_switched_on_later() -> Case:
    model = nn.Sequential(nn.Linear(4, 8), batchnorm.BatchNorm1d(8, track_running_stats=False))
    model[1].track_running_stats = True
    return Case(model, batches())


@planted("BN013", "1")
def an_average_without_a_count() -> Case:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, momentum=None))
    model[1].num_batches_tracked = None
    return Case(model, batches())


@planted("BN013", "1")
def a_moved_average_without_a_count() -> Case:
    model = network(momentum=None)
    model[1].num_batches_tracked = None
    return Case(model)


@planted("BN013", "0")
def synced_without_a_count() -> Case:
    model = nn.Sequential(nn.SyncBatchNorm(4))
    model[0].running_mean.fill_(1.0)
    model[0].num_batches_tracked = None
    return Case(model, batches())


@planted("BN013", "0")
def half_of_the_statistics() -> Case:
    model = nn.Sequential(nn.BatchNorm1d(4))
    model[0].running_var = None
    return Case(model)


@planted("BN013", "0")
def the_other_half_of_the_statistics() -> Case:
    model = nn.Sequential(nn.BatchNorm1d(4, dtype=torch.float64))
    model[0].running_mean = None
    return Case(model)


@planted("BN013", "1")
def gamma_without_affine() -> Case:
    model = network()
    model[1].affine = False
    return Case(model, batches())


@healthy("BN013")
def as_constructed() -> Case:
    return Case(
        nn.Sequential(
            nn.Linear(4, 8),
            nn.BatchNorm1d(8),
            nn.BatchNorm1d(8, track_running_stats=False),
            nn.BatchNorm1d(8, momentum=None),
            nn.BatchNorm1d(8, affine=False),
            batchnorm.DomainBatchNorm1d(8),
            batchnorm.BatchNorm1d(8, bias=False),
        ),
        batches(),
    )


@healthy("BN013")
def a_momentum_needs_no_count() -> Case:
    model = network()
    model[1].num_batches_tracked = None
    return Case(model, batches())


@healthy("BN013")
def frozen_goes_by_its_statistics_whatever_the_flag() -> Case:
    model = network()
    batchnorm.freeze(model)
    model[1].track_running_stats = False
    return Case(model)
