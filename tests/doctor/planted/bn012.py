"""Statistics that move in evaluation."""

import torch
from torch import Tensor, nn

import batchnorm
from doctor.plant import Case, healthy, planted


def batches() -> list[Tensor]:
    return [torch.randn(16, 4) for _ in range(2)]


class Forgetful(nn.Module):
    """Its layers do not hear of the mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def train(self, mode: bool = True) -> nn.Module:
        self.training = mode
        return self

    def forward(self, input: Tensor) -> Tensor:
        return self.norm(input)


@planted("BN012", "norm")
def a_train_of_its_own() -> Case:
    return Case(Forgetful(), batches())


class Switching(nn.Module):
    """Puts a part into training mode whenever it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.BatchNorm1d(4), nn.BatchNorm1d(4)

    def forward(self, input: Tensor) -> Tensor:
        self.head.train()
        return self.head(self.first(input))


@planted("BN012", "head")
def a_forward_that_switches() -> Case:
    return Case(Switching(), batches())


@healthy("BN012")
def plain() -> Case:
    return Case(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), batches())


@healthy("BN012")
def batch_statistics_in_evaluation_without_buffers() -> Case:
    return Case(nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False)), batches())


@healthy("BN012")
def switching_a_frozen_layer() -> Case:
    model = Switching()
    batchnorm.freeze(model)
    return Case(model, batches())
