"""Another framework's eps."""

import torch
from torch import nn

from doctor.plant import Case, healthy, planted


def network(eps: float, var: float) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, eps), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8, eps))
    model[4].running_var.uniform_(0.5 * var, var)
    return model


@planted("BN026", "4")
def from_keras() -> Case:
    return Case(network(1e-5, 0.01), options={"weights_from": "Keras"})


@planted("BN026", "4")
def from_chainer() -> Case:
    return Case(network(1e-5, 2e-4), [torch.randn(8, 4)], options={"weights_from": "chainer"})


@healthy("BN026")
def somebody_chose_it() -> Case:
    # As the ports of ResNet and DenseNet from Keras have to.
    return Case(network(1.001e-5, 0.01), options={"weights_from": "keras"})


@healthy("BN026")
def a_variance_that_does_not_show_it() -> Case:
    return Case(network(1e-5, 1.0), options={"weights_from": "tensorflow"})


@healthy("BN026")
def the_same_eps() -> Case:
    return Case(network(1e-5, 1e-4), options={"weights_from": "flax"})


@healthy("BN026")
def nothing_said() -> Case:
    return Case(network(1e-3, 1e-4))


@healthy("BN026")
def only_a_channel_without_gamma() -> Case:
    model = network(1e-5, 1.0)
    model[4].running_var[2] = 1e-6
    with torch.no_grad():
        model[4].weight[2] = 0
    return Case(model, options={"weights_from": "tensorflow"})
