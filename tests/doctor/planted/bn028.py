"""Norms of deployed networks that could be folded."""

import torch
from torch import nn

import batchnorm
from doctor.plant import Case, healthy, planted

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@planted("BN028", "")
def behind_convolutions_and_dropout() -> Case:
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Dropout(), nn.BatchNorm2d(4)
    return Case(nn.Sequential(*layers).eval(), IMAGES)


@planted("BN028", "")
def our_layer_with_its_activation() -> Case:
    layers = nn.Conv2d(3, 4, 3, bias=False), batchnorm.BatchNormAct2d(4), nn.ReLU(), nn.BatchNorm2d(4)
    return Case(nn.Sequential(*layers).eval(), IMAGES)


@planted("BN028", "")
def before_a_layer_in_a_frozen_model() -> Case:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3))
    batchnorm.freeze(model)
    return Case(model.eval(), IMAGES)


@healthy("BN028")
def folded_already() -> Case:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    return Case(batchnorm.fold(model, IMAGES).model, IMAGES)


@healthy("BN028")
def none_that_folds() -> Case:
    # An activation on both sides, a convolution that pads with zeros, and no running statistics.
    layers = (
        *(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)),
        nn.BatchNorm2d(4, track_running_stats=False),
    )
    model = nn.Sequential(*layers)
    nn.init.normal_(model[6].bias)
    return Case(model.eval(), IMAGES)


@healthy("BN028")
def a_layer_that_is_used_twice() -> Case:
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, input):
            return self.norm(self.conv(self.conv(input)))

    return Case(Twice().eval(), IMAGES)
