"""Default statistics."""

from copy import deepcopy

import torch
from torch import Tensor, nn

import batchnorm
from doctor.plant import Case, healthy, planted


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8))


def batches() -> list[Tensor]:
    return [2 * torch.randn(64, 4) + 3 for _ in range(4)]


def train(model: nn.Module) -> nn.Module:
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for batch in 3 * batches():
        optimizer.zero_grad()
        model(batch).cos().sum().backward()
        optimizer.step()
    return model


def target_without_buffers() -> nn.Module:
    source, target = train(network()), network()
    with torch.no_grad():
        for to, weight in zip(target.parameters(), source.parameters(), strict=True):
            to.copy_(weight)
    return target


@planted("BN010", "1", "4")
def target_network_without_buffers() -> Case:
    return Case(target_without_buffers(), batches())


@planted("BN010", "1", "4")
def checkpoint_without_buffers() -> Case:
    return Case(target_without_buffers().state_dict())


@planted("BN010", "4")
def statistics_lost_after_counting() -> Case:
    model = train(network())
    model[4].running_mean.zero_()
    model[4].running_var.fill_(1)
    return Case(model, batches())


class Branches(nn.Module):
    """The second one is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = network(), network()

    def forward(self, input: Tensor) -> Tensor:
        return self.used(input)


@planted("BN010", "unused.1", "unused.4")
def a_branch_that_nothing_reaches() -> Case:
    return Case(train(Branches()), batches())


@healthy("BN010")
def new() -> Case:
    return Case(network())


@healthy("BN010")
def new_with_batches() -> Case:
    return Case(network(), batches())


@healthy("BN010")
def new_with_gamma_at_random() -> Case:
    # As of DCGAN.
    model = network()
    for layer in (model[1], model[4]):
        nn.init.normal_(layer.weight, 1, 0.02)
    return Case(model)


@healthy("BN010")
def no_statistics() -> Case:
    model = train(network())
    model[4] = nn.BatchNorm1d(8, track_running_stats=False)
    return Case(model, batches())


@healthy("BN010")
def frozen_with_statistics_folded_into_gamma_and_beta() -> Case:
    model = target_without_buffers()
    return Case(batchnorm.convert(model, "frozen"), batches())


@healthy("BN010")
def data_that_are_standardised() -> Case:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2))
    nn.init.normal_(model[0].bias)
    return Case(model, [torch.randn(64, 4) for _ in range(4)])


@healthy("BN010")
def taken_anew() -> Case:
    model = target_without_buffers()
    batchnorm.recalibrate(model, batches())
    return Case(deepcopy(model), batches())


@planted("BN010", "0")
def a_momentum_of_zero_from_the_start() -> Case:
    model = nn.Sequential(nn.BatchNorm1d(4, momentum=0.0), nn.Linear(4, 2))
    for batch in batches():
        model(batch)
    return Case(model, batches())
