"""Norms that feed the flat ends of activations."""

import torch
from torch import Tensor, nn

import batchnorm
from doctor.plant import Case, healthy, planted


def network(activation: nn.Module, gamma: float = 1.0, beta: float = 0.0) -> nn.Sequential:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), activation, nn.Conv2d(6, 2, 3))
    nn.init.constant_(model[1].weight, gamma)
    nn.init.constant_(model[1].bias, beta)
    return model


def batches() -> list[Tensor]:
    return [torch.randn(4, 3, 8, 8) for _ in range(2)]


@planted("BN027", "1")
def large_gamma_before_tanh() -> Case:
    return Case(network(nn.Tanh(), gamma=8.0), batches())


@planted("BN027", "1")
def low_beta_before_hardswish() -> Case:
    return Case(network(nn.Hardswish(), beta=-5.0), batches())


@planted("BN027", "1")
def high_beta_before_relu6() -> Case:
    return Case(network(nn.ReLU6(), beta=8.0), batches())


@planted("BN027", "1")
def large_gamma_before_hardsigmoid() -> Case:
    return Case(network(nn.Hardsigmoid(), gamma=9.0), batches())


@planted("BN027", "1")
def large_gamma_in_a_layer_with_sigmoid() -> Case:
    model = network(nn.Sigmoid(), gamma=12.0)
    fused = batchnorm.BatchNormAct2d(6, activation="sigmoid")
    fused.load_state_dict(model[1].state_dict())
    return Case(nn.Sequential(model[0], fused, model[3]), batches())


@planted("BN027", "1")
def large_gamma_before_a_function_of_torch() -> Case:
    class Network(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            return self[3](torch.sigmoid(self[1](self[0](input))))

    return Case(Network(*network(nn.Identity(), gamma=12.0)), batches())


@planted("BN027", "1")
def a_gate_that_is_shut() -> Case:
    class Network(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            hidden = self[0](input)
            return self[3](hidden * self[2](self[1](hidden)))

    return Case(Network(*network(nn.Sigmoid(), beta=-9.0)), batches())


@healthy("BN027")
def half_of_relu_is_flat() -> Case:
    return Case(network(nn.ReLU(), beta=-1.0), batches())


@healthy("BN027")
def as_it_is_initialised() -> Case:
    return Case(network(nn.Sigmoid()), batches())


@healthy("BN027")
def the_lower_end_of_relu6() -> Case:
    return Case(network(nn.ReLU6(), beta=-1.0), batches())


@healthy("BN027")
def a_wide_hardtanh() -> Case:
    return Case(network(nn.Hardtanh(-20.0, 20.0), gamma=5.0), batches())


@healthy("BN027")
def the_residual_brings_it_back() -> Case:
    class Network(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            hidden = self[0](input)
            return self[2](self[1](hidden, 9.0 - hidden))

    norm = batchnorm.BatchNormAct2d(6, activation="tanh")
    nn.init.constant_(norm.bias, -9.0)
    return Case(Network(nn.Conv2d(3, 6, 3), norm, nn.Conv2d(6, 2, 3)), batches())


@healthy("BN027")
def a_sure_answer() -> Case:
    return Case(network(nn.Sigmoid(), gamma=30.0)[:3], batches())


@healthy("BN027")
def swish_by_hand() -> Case:
    class Network(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            hidden = self[1](self[0](input))
            return self[3](hidden * torch.sigmoid(hidden))

    return Case(Network(*network(nn.Identity(), beta=9.0)), batches())
