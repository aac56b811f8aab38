"""Redundant biases."""

import torch
import torch.nn.functional as F
from torch import nn

import batchnorm
from doctor.plant import Case, healthy, planted

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@planted("BN017", "1", "4", "8")
def before_three_kinds_of_layers() -> Case:
    return Case(
        nn.Sequential(
            *(nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), nn.BatchNorm2d(4), nn.ReLU()),
            *(nn.ConvTranspose2d(4, 6, 2, groups=2), batchnorm.BatchNormAct2d(6), nn.AdaptiveAvgPool2d(1)),
            *(nn.Flatten(), nn.Linear(6, 5), nn.BatchNorm1d(5, track_running_stats=False)),
        ),
        IMAGES,
    )


class Frames(nn.Module):
    """(N, L, C) features, which the norm takes as (N, C, L)."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(6, 5), batchnorm.GhostBatchNorm1d(5, ghost_size=2)

    def forward(self, input):
        return self.norm(self.linear(input).transpose(1, 2))


@planted("BN017", "norm")
def before_a_transposition() -> Case:
    return Case(Frames(), torch.randn(4, 7, 6))


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.kernel, self.shift = nn.Parameter(torch.randn(4, 3, 3, 3)), nn.Parameter(torch.zeros(4))
        self.norm = nn.BatchNorm2d(4)

    def forward(self, input):
        return self.norm(F.conv2d(input, self.kernel, self.shift))


@planted("BN017", "norm")
def of_a_function() -> Case:
    return Case(Functional().eval(), IMAGES)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.first, self.second = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, input):
        shared = self.conv(input)
        return self.first(shared) + self.second(shared).relu()


@planted("BN017", "first")
def one_output_for_two_norms() -> Case:
    return Case(Two(), IMAGES)


@planted("BN017", "first")
def one_bias_of_two_layers() -> Case:
    class Tied(Two):
        def __init__(self):
            super().__init__()
            self.other = nn.Conv2d(3, 4, 1)
            self.other.bias = self.conv.bias

        def forward(self, input):
            return self.first(self.conv(input)) + self.second(self.other(input)).relu()

    return Case(Tied(), IMAGES)


@planted("BN017", "first")
def one_layer_called_twice() -> Case:
    class Twice(Two):
        def forward(self, input):
            return self.first(self.conv(input)) - self.first(self.conv(2 * input))

    return Case(Twice(), IMAGES)


@healthy("BN017")
def without_a_bias() -> Case:
    return Case(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)), IMAGES)


@healthy("BN017")
def a_running_mean_shared_by_a_layer_without_one() -> Case:
    class Mixed(Two):
        def __init__(self):
            super().__init__()
            self.other = nn.Conv2d(3, 4, 1, bias=False)

        def forward(self, input):
            return self.first(self.conv(input)) + self.first(self.other(input))

    return Case(Mixed(), IMAGES)


@healthy("BN017")
def parametrized() -> Case:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    nn.utils.parametrize.register_parametrization(model[0], "bias", nn.Identity())
    return Case(model, IMAGES)


@healthy("BN017")
def something_between() -> Case:
    return Case(
        nn.Sequential(
            *(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)),
            *(nn.Conv2d(4, 4, 1), nn.ZeroPad2d(1), nn.BatchNorm2d(4)),
            *(nn.Conv2d(4, 4, 1), nn.Dropout(), nn.BatchNorm2d(4)),
            *(nn.Conv2d(4, 4, 1), nn.GroupNorm(2, 4), nn.BatchNorm2d(4)),
        ),
        IMAGES,
    )


@healthy("BN017")
def fixed_statistics() -> Case:
    model = nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), batchnorm.FrozenBatchNorm2d(4)),
        *(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)),
    )
    batchnorm.freeze(model, where=lambda path, _: path == "1")
    model[5].eval()  # by hand, as many do
    return Case(model, IMAGES)


@healthy("BN017")
def others_read_the_sum_or_the_bias() -> Case:
    class Read(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.other = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
            self.shared = nn.Conv2d(3, 4, 1)

        def forward(self, input):
            seen = self.conv(input)
            return self.norm(seen) + seen + self.other(self.shared(input)) + self.shared.bias[:, None, None]

    return Case(Read(), IMAGES)


@healthy("BN017")
def features_along_another_dimension() -> Case:
    # The norm's channels are the rows: a bias of the features shifts them all alike, but not each by its own.
    return Case(nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)), torch.randn(4, 6, 6))
