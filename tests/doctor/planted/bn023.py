"""Norms in super-resolution."""

import torch
import torch.nn.functional as F
from torch import nn

import batchnorm
from doctor.plant import Case, healthy, planted

IMAGES = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def conv(into: int, out: int) -> nn.Conv2d:
    return nn.Conv2d(into, out, 3, padding=1)


@planted("BN023", "1", "4")
def a_plain_chain() -> Case:
    body = conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 8), batchnorm.BatchNormAct2d(8)
    return Case(nn.Sequential(*body, conv(8, 27), nn.PixelShuffle(3)), IMAGES)


class ResidualBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(conv(8, 8), nn.BatchNorm2d(8), nn.PReLU(), conv(8, 8), nn.BatchNorm2d(8))

    def forward(self, input):
        return input + self.body(input)


class Generator(nn.Module):
    """That of SRGAN, small."""

    def __init__(self):
        super().__init__()
        self.head, self.blocks = conv(3, 8), nn.Sequential(ResidualBlock(), ResidualBlock())
        self.tail = nn.Sequential(conv(8, 12), nn.PixelShuffle(2), conv(3, 3))

    def forward(self, input):
        head = self.head(input)
        return self.tail(head + self.blocks(head))


@planted("BN023", "blocks.0.body.1", "blocks.0.body.4", "blocks.1.body.1", "blocks.1.body.4")
def with_skips() -> Case:
    return Case(Generator(), IMAGES)


@planted("BN023", "norm")
def one_channel_by_a_transposed_convolution() -> Case:
    class Volume(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.norm = nn.ConvTranspose3d(1, 4, 2, stride=2), nn.BatchNorm3d(4)
            self.last = nn.Conv3d(4, 1, 1)

        def forward(self, input):
            return {"image": self.last(self.norm(self.up(input)).relu()), "input": input}

    return Case(Volume().eval(), torch.rand(2, 1, 4, 4, 4))


@healthy("BN023")
def without_norms() -> Case:
    model = Generator()
    for path, layer in list(model.named_modules()):
        if isinstance(layer, nn.BatchNorm2d):
            model.set_submodule(path, nn.Identity())
    return Case(model, IMAGES)


@healthy("BN023")
def a_norm_beside_the_path() -> Case:
    class Beside(nn.Module):
        """Also names what is in the image."""

        def __init__(self):
            super().__init__()
            self.up = nn.Sequential(conv(3, 12), nn.PixelShuffle(2))
            self.classes = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten())

        def forward(self, input):
            return self.up(input), self.classes(input)

    return Case(Beside(), IMAGES)


@healthy("BN023")
def frozen_norms() -> Case:
    model = Generator()
    batchnorm.freeze(model)
    return Case(model, IMAGES)


@healthy("BN023")
def an_autoencoder_of_the_same_size() -> Case:
    coder = nn.Conv2d(3, 8, 2, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.ConvTranspose2d(8, 3, 2, stride=2)
    return Case(nn.Sequential(*coder), IMAGES)


@healthy("BN023")
def a_generator_from_latents() -> Case:
    layers = nn.ConvTranspose2d(16, 8, 4), nn.BatchNorm2d(8), nn.ReLU(), nn.ConvTranspose2d(8, 3, 4, stride=4)
    return Case(nn.Sequential(*layers), torch.randn(4, 16, 1, 1))


@healthy("BN023")
def norms_kept_in_evaluation_by_the_model() -> Case:
    class Fixed(Generator):
        def train(self, mode=True):
            super().train(mode)
            self.blocks.eval()
            return self

    return Case(Fixed().train(), IMAGES)


class Maps(nn.Module):
    """What is seen in the image, at twice its size."""

    def __init__(self, kinds: int):
        super().__init__()
        self.body = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, kinds))

    def forward(self, input):
        return F.interpolate(self.body(input), scale_factor=2)


@healthy("BN023")
def segmentation_at_twice_the_size() -> Case:
    return Case(Maps(21), IMAGES)


@healthy("BN023")
def three_kinds_at_twice_the_size() -> Case:
    pairs = [(IMAGES, torch.zeros(4, 16, 16, dtype=torch.int64))]
    return Case(Maps(3), pairs, F.cross_entropy)


@planted("BN023", "body.1")
def an_image_that_is_the_target() -> Case:
    return Case(Maps(3), [(IMAGES, torch.rand(4, 3, 16, 16))], F.mse_loss)


@healthy("BN023")
def depth_at_twice_the_size() -> Case:
    return Case(Maps(1), IMAGES)
