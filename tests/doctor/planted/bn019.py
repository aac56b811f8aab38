"""Norms whose features are the last dimension."""

import torch
from torch import Tensor, nn

from doctor.plant import Case, healthy, planted


class Transposed(nn.BatchNorm1d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.transpose(1, 2)).transpose(1, 2)


def sequences(length: int, features: int) -> list[Tensor]:
    return [torch.randn(4, length, features) for _ in range(2)]


@planted("BN019", "4")
def as_many_positions_as_features() -> Case:
    model = nn.Sequential(nn.Linear(3, 6), Transposed(6), nn.ReLU(), nn.Linear(6, 8), nn.BatchNorm1d(8))
    return Case(model, sequences(8, 3))


@planted("BN019", "norm")
def behind_a_recurrent_layer_and_dropout() -> Case:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.rnn = nn.Embedding(10, 5), nn.GRU(5, 7, batch_first=True)
            self.dropout, self.norm, self.head = nn.Dropout(0.1), nn.BatchNorm1d(7), nn.Linear(7, 2)

        def forward(self, input: Tensor) -> Tensor:
            hidden, _ = self.rnn(self.embedding(input))
            return self.head(self.norm(torch.relu(self.dropout(hidden))).mean(1))

    return Case(Network(), [torch.randint(10, (4, 7))])


@planted("BN019", "norm")
def images_with_their_channels_last() -> Case:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)

        def forward(self, input: Tensor) -> Tensor:
            return self.norm(self.conv(input).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    return Case(Network(), [torch.randn(4, 3, 8, 8)])


@planted("BN019", "1")
def it_raises() -> Case:
    return Case(nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU()), sequences(8, 3))


@planted("BN019", "1")
def along_the_last_dimension_of_what_is_unknown() -> Case:
    return Case(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)), sequences(8, 8))


@healthy("BN019")
def along_the_positions_of_channels() -> Case:
    stem = nn.Conv1d(3, 8, 3, padding=1), nn.BatchNorm1d(8), nn.ReLU()
    return Case(nn.Sequential(*stem, nn.Linear(8, 8), nn.BatchNorm1d(8)), sequences(3, 8))


@healthy("BN019")
def along_the_positions_of_normed_input() -> Case:
    return Case(nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 8), nn.BatchNorm1d(8)), sequences(8, 8))


@healthy("BN019")
def transposed_as_it_should_be() -> Case:
    return Case(
        nn.Sequential(nn.Linear(3, 8), Transposed(8), nn.ReLU(), nn.Linear(8, 8), Transposed(8)), sequences(8, 3)
    )


@healthy("BN019")
def convolutions_on_squares() -> Case:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4))
    return Case(model, [torch.randn(4, 3, 8, 8)])


@healthy("BN019")
def a_statistic_for_each_position_on_purpose() -> Case:
    return Case(nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(8)), sequences(8, 3))


@healthy("BN019")
def rows_of_features() -> Case:
    class Flat(nn.BatchNorm1d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input.flatten(0, 1)).view(input.shape)

    return Case(nn.Sequential(nn.Linear(3, 8), Flat(8)), sequences(8, 3))
