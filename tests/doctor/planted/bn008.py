"""Ranks that disagree."""

import torch
import torch.distributed as dist
from torch import nn

import batchnorm
from doctor.plant import Case, healthy, planted


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))


def trained(model: nn.Sequential, shift: float, steps: int = 40) -> nn.Sequential:
    """On batches of the rank's own, which differ by so much from those of the rank before."""
    torch.manual_seed(1 + dist.get_rank())
    with torch.no_grad():
        for _ in range(steps):
            model(torch.randn(16, 3, 8, 8) + shift * dist.get_rank())
    return model


@planted("BN008", "1", ranks=2)
def data_by_rank() -> Case:
    """The second norm sees what the first has made equal."""
    return Case(trained(network(), shift=2.0))


@planted("BN008", "1", ranks=2)
def one_rank_lost_its_statistics() -> Case:
    model = trained(network(), shift=0.0)
    dist.broadcast(model[4].running_mean, 0)
    dist.broadcast(model[4].running_var, 0)
    model[1].running_var.fill_(3.0)
    if dist.get_rank() == 1:
        model[1].reset_running_stats()
    return Case(model)


@planted("BN008", "module.1", ranks=2)
def one_rank_is_poisoned() -> Case:
    model = nn.ModuleDict({"module": nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))})
    if dist.get_rank() == 1:
        model["module"][1].running_mean[0] = torch.nan
    return Case(model)


@planted("BN008", "0", ranks=2)
def frozen_differently() -> Case:
    model = nn.Sequential(nn.BatchNorm2d(3))
    model[0].running_mean.fill_(dist.get_rank())
    model[0].num_batches_tracked.fill_(5)
    batchnorm.freeze(model)
    return Case(model)


@healthy("BN008", ranks=2)
def the_same_data_distribution() -> Case:
    return Case(trained(network(), shift=0.0))


@healthy("BN008", ranks=2)
def synchronized() -> Case:
    model = trained(network(), shift=2.0)
    batchnorm.synchronize(model)
    return Case(model)


@healthy("BN008", ranks=2)
def a_dead_channel() -> Case:
    """A variance of next to nothing: eps decides, and the ranks compute the same."""
    model = nn.Sequential(nn.BatchNorm2d(2))
    model[0].running_var.fill_(1e-12 * (1 + 9 * dist.get_rank()))
    model[0].running_mean.fill_(1e-6 * dist.get_rank())
    return Case(model)


@healthy("BN008", ranks=2)
def new_and_without_statistics() -> Case:
    return Case(nn.Sequential(nn.BatchNorm1d(4), nn.BatchNorm1d(4, track_running_stats=False)))
