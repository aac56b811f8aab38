"""Dropout before norms."""

import torch
import torch.nn.functional as F
from torch import nn

import batchnorm
from doctor.plant import Case, healthy, planted


def images(count: int = 4, samples: int = 16) -> list[torch.Tensor]:
    return [torch.randn(samples, 3, 8, 8) for _ in range(count)]


def vectors(features: int = 32) -> list[torch.Tensor]:
    return [torch.randn(64, features) for _ in range(4)]


@planted("BN018", "4")
def between_two_linear_layers() -> Case:
    layers = nn.Linear(32, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU()
    return Case(nn.Sequential(*layers), vectors())


class Residual(nn.Module):
    """A function drops values in a branch; what is added to it reaches the norm of the next block."""

    def __init__(self, norm=nn.BatchNorm2d):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.conv, self.after = nn.Conv2d(16, 16, 3, padding=1), norm(16)

    def forward(self, input):
        stem = self.stem(input)
        return self.after(self.conv(stem + F.dropout2d(stem, 0.5, self.training))).relu()


@planted("BN018", "after")
def a_function_in_a_residual_branch() -> Case:
    return Case(Residual(), images())


@planted("BN018", "after")
def with_our_layer() -> Case:
    return Case(Residual(batchnorm.BatchNormAct2d), images())


class StochasticDepth(nn.Module):
    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, input):
        if not self.training:
            return input
        kept = torch.rand(len(input), 1, 1, 1, device=input.device) >= self.p
        return input * kept / (1 - self.p)


@planted("BN018", "norm", "fused")
def stochastic_depth() -> Case:
    class Blocks(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.drop = nn.Conv2d(3, 16, 3), StochasticDepth(0.5)
            self.norm = nn.BatchNorm2d(16)
            # The norm evens out what it normalises, but not the residual that is added to it.
            self.act, self.next, self.fused = batchnorm.BatchNormAct2d(16), nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16)

        def forward(self, input):
            dropped = self.drop(self.first(input))
            normed = self.norm(dropped)
            return self.fused(self.next(self.act(normed, residual=dropped)))

    return Case(Blocks(), images())


@planted("BN018", "norm")
def on_attention() -> Case:
    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.norm = nn.MultiheadAttention(16, 2, dropout=0.5), nn.BatchNorm1d(16)

        def forward(self, input):
            mixed = self.attention(input, input, input, need_weights=False)[0]
            return self.norm(mixed.transpose(1, 2))

    return Case(Attends(), [torch.randn(8, 12, 16) for _ in range(4)])


class Recurrent(nn.Module):
    def __init__(self, layers: int = 2, kind=nn.LSTM):
        super().__init__()
        self.recurrent, self.norm = kind(8, 32, layers, batch_first=True), nn.BatchNorm1d(32)
        self.recurrent.dropout = 0.5

    def forward(self, input):
        return self.norm(self.recurrent(input)[0][:, -1])


@planted("BN018", "norm")
def between_the_layers_of_an_lstm() -> Case:
    return Case(Recurrent(), [torch.randn(64, 10, 8) for _ in range(4)])


@planted("BN018", "norm")
def between_the_layers_of_a_gru() -> Case:
    return Case(Recurrent(kind=nn.GRU), [torch.randn(64, 10, 8) for _ in range(4)])


@healthy("BN018")
def one_recurrent_layer_drops_nothing() -> Case:
    return Case(Recurrent(layers=1), [torch.randn(64, 10, 8) for _ in range(4)])


@healthy("BN018")
def behind_the_last_norm() -> Case:
    layers = nn.Linear(32, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 64)
    return Case(nn.Sequential(*layers), vectors())


@healthy("BN018")
def too_weak_to_matter_or_off() -> Case:
    layers = nn.Dropout(0.01), nn.Linear(32, 64), nn.BatchNorm1d(64), nn.Dropout(0.0), nn.BatchNorm1d(64)
    return Case(nn.Sequential(*layers), vectors())


@healthy("BN018")
def evened_out_by_another_norm() -> Case:
    layers = nn.Linear(32, 64), nn.Dropout(0.5), nn.LayerNorm(64), nn.Linear(64, 64), nn.BatchNorm1d(64)
    return Case(nn.Sequential(*layers), vectors())


@healthy("BN018")
def without_running_statistics() -> Case:
    layers = nn.Dropout(0.5), nn.Linear(32, 64), nn.BatchNorm1d(64, track_running_stats=False)
    return Case(nn.Sequential(*layers), vectors())


@healthy("BN018")
def frozen_norms() -> Case:
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(32, 64), nn.BatchNorm1d(64))
    batchnorm.freeze(model)
    return Case(model, vectors())


@healthy("BN018")
def running_statistics_of_other_data() -> Case:
    # Fresh ones do not fit: evaluation differs from training, and dropout has no part in it.
    layers = nn.Linear(32, 64), nn.BatchNorm1d(64), nn.Dropout(0.005), nn.Linear(64, 64), nn.BatchNorm1d(64)
    return Case(nn.Sequential(*layers), [10 * each for each in vectors()])
