"""Poisoned statistics."""

import torch
from torch import nn

import batchnorm
from doctor.plant import Case, healthy, planted


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))


def batches() -> list[torch.Tensor]:
    return [torch.randn(8, 3, 8, 8) for _ in range(4)]


@planted("BN004", "1", "4")
def one_nan_in_one_batch() -> Case:
    model = network()
    poisoned = torch.randn(2, 3, 8, 8)
    poisoned[0, 0, 0, 0] = torch.nan
    model(poisoned)
    return Case(model, batches())


@planted("BN004", "4")
def a_negative_variance() -> Case:
    model = network()
    model[4].running_var[2] = -1e-3
    return Case(model, batches())


@planted("BN004", "1", "4")
def overflow_in_a_checkpoint() -> Case:
    model = network().double()
    model(1e20 * torch.randn(2, 3, 8, 8, dtype=torch.float64))
    model[4].running_var.fill_(torch.inf)
    return Case(model.state_dict())


@planted("BN004", "1")
def nan_in_the_data() -> Case:
    given = batches()
    given[1].fill_(torch.nan)
    return Case(network(), given)


@planted("BN004", "4")
def infinity_where_our_layer_lets_it_through() -> Case:
    model = network()
    model[1] = batchnorm.BatchNorm2d(4)
    given = batches()
    given[0][0, 0, 4, 4] = torch.inf
    return Case(model, given)


@healthy("BN004")
def frozen_where_nan_comes() -> Case:
    model = network()
    batchnorm.freeze(model)
    given = batches()
    given[0][0, 0, 4, 4] = torch.nan
    return Case(model, given)


@healthy("BN004")
def large_but_true() -> Case:
    model = network()
    for _ in range(3):
        model(1e6 * torch.randn(4, 3, 8, 8))
    return Case(model)


@healthy("BN004")
def nan_with_our_layers() -> Case:
    model = batchnorm.convert(network(), "batch")
    model(torch.full((2, 3, 8, 8), torch.nan))
    return Case(model)


@planted("BN004", "1", "4")
def gamma_and_beta_after_a_bad_step() -> Case:
    model = network()
    model[1].weight.data[2] = torch.nan
    model[4].bias.data[0] = -torch.inf
    return Case(model)
