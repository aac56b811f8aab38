"""Samples that depend on others in evaluation mode."""

import torch
from torch import Tensor, nn

from doctor.plant import Case, healthy, planted


def batches() -> list[Tensor]:
    return [torch.randn(8, 4) for _ in range(2)]


@planted("BN024", "1")
def no_statistics() -> Case:
    return Case(
        nn.Sequential(
            *(nn.Linear(4, 6), nn.BatchNorm1d(6, track_running_stats=False), nn.ReLU()),
            *(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)),
        ),
        batches(),
    )


@planted("BN024", "1")
def no_statistics_without_gamma() -> Case:
    norm = nn.BatchNorm1d(6, eps=1e-2, affine=False, track_running_stats=False)
    return Case(nn.Sequential(nn.Linear(4, 6), norm, nn.Linear(6, 2)).double(), [each.double() for each in batches()])


class Deaf(nn.BatchNorm1d):
    """Stays in training mode: its author forgot that ``eval`` calls this."""

    def train(self, mode: bool = True) -> "Deaf":
        return super().train(True)


@planted("BN024", "1")
def deaf_to_eval() -> Case:
    return Case(nn.Sequential(nn.Linear(4, 6), Deaf(6), nn.Linear(6, 2)), batches())


@planted("BN024", "norm")
def forward_switches_the_mode() -> Case:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.head = nn.BatchNorm1d(4), nn.Linear(4, 2)

        def forward(self, input: Tensor) -> Tensor:
            self.norm.train()
            return self.head(self.norm(input))

    return Case(Network(), batches())


@healthy("BN024")
def an_instance_norm_in_its_clothes() -> Case:
    """Each sample's channels are channels of their own."""

    class Instance(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(8 * 3, affine=False, track_running_stats=False)

        def forward(self, input: Tensor) -> Tensor:
            samples, channels, *size = input.shape
            return self.norm(input.reshape(1, samples * channels, *size)).view(input.shape)

    return Case(Instance(), [torch.randn(8, 3, 5, 5)])


@healthy("BN024")
def others_matter_and_the_norm_is_not_to_blame() -> Case:
    class Similarities(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, input: Tensor) -> Tensor:
            output = self.norm(input)
            return output @ output.T

    return Case(Similarities(), batches())


@healthy("BN024")
def stale_statistics_and_dropout() -> Case:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(), nn.Linear(6, 2))
    model(100 * torch.randn(8, 4))
    return Case(model, batches())
