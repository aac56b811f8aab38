"""Decay on gamma and beta."""

import torch
from torch import nn

import batchnorm
from doctor.plant import Case, healthy, planted


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))


@planted("BN016", "")
def the_default_of_adamw() -> Case:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(torch.randn(4, 3, 8, 8)).square().mean().backward()
    optimizer.step()
    return Case(model, optimizer=optimizer)


@planted("BN016", "")
def named_and_in_two_groups() -> Case:
    model = network()
    groups = [
        {"params": list(model[:3].named_parameters()), "weight_decay": 1e-2},
        {"params": list(model[3:].named_parameters()), "weight_decay": 1e-3, "lr": 0.5},
    ]
    return Case(model, optimizer=torch.optim.SGD(groups, lr=1.0, momentum=0.9))


@planted("BN016", "")
def a_group_of_norms_only_under_a_scheduler() -> Case:
    model = network()
    groups = batchnorm.parameter_groups(model, 1e-4)
    groups[1]["weight_decay"] = 1e-5
    optimizer = torch.optim.SGD(groups, lr=0.1)
    torch.optim.lr_scheduler.StepLR(optimizer, 10)
    return Case(model, optimizer=optimizer)


@planted("BN016", "")
def under_a_scheduler() -> Case:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=1e-4)
    torch.optim.lr_scheduler.StepLR(optimizer, 10)
    return Case(model, optimizer=optimizer)


@healthy("BN016")
def groups_by_this_library() -> Case:
    model = network()
    return Case(model, optimizer=torch.optim.AdamW(batchnorm.parameter_groups(model, 0.05)))


@healthy("BN016")
def no_decay() -> Case:
    model = network()
    return Case(model, optimizer=torch.optim.Adam(model.parameters()))


@healthy("BN016")
def nothing_to_train_there() -> Case:
    model = network()
    for layer in (model[1], model[4]):
        layer.requires_grad_(False)
    return Case(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=1e-4))


@healthy("BN016")
def no_gamma_and_other_norms() -> Case:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False), nn.GroupNorm(2, 4))
    return Case(model, optimizer=torch.optim.AdamW(model.parameters()))
