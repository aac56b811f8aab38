"""The networks of ``gpu.py`` beside this, with random weights: for images, channels-last, under bfloat16 autocast.

They need ``transformers`` and nothing else; ``small`` gives the same layers in the same order with fewer channels.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn

from batchnorm.bench.gpu_summary import DENSENET, RESNET

__all__ = ["NETWORKS", "network"]


class Autocast(nn.Module):
    """A network under bfloat16 autocast, as a training loop has it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, input: Tensor) -> object:
        """Gives what the network gives."""
        with torch.autocast(input.device.type, torch.bfloat16):
            return self.network(input)


class _DenseLayer(nn.Module):
    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.BatchNorm2d(channels), nn.ReLU(inplace=True), nn.Conv2d(channels, 4 * growth, 1, bias=False)
        )
        self.second = nn.Sequential(
            nn.BatchNorm2d(4 * growth), nn.ReLU(inplace=True), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)
        )

    def forward(self, input: Tensor) -> Tensor:
        return torch.cat([input, self.second(self.first(input))], 1)


def _densenet121(small: bool) -> nn.Module:
    """DenseNet-BC (arXiv 1608.06993), table 1, with blocks of 6, 12, 24 and 16 layers."""
    growth, channels = (4, 8) if small else (32, 64)
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        stem=nn.Sequential(
            *(nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(channels)),
            *(nn.ReLU(inplace=True), nn.MaxPool2d(3, stride=2, padding=1)),
        )
    )
    for block, count in enumerate((6, 12, 24, 16)):
        for layer in range(count):
            layers[f"block{block}_{layer}"] = _DenseLayer(channels, growth)
            channels += growth
        if block < 3:
            halved = nn.Conv2d(channels, channels // 2, 1, bias=False)
            layers[f"transition{block}"] = nn.Sequential(
                nn.BatchNorm2d(channels), nn.ReLU(inplace=True), halved, nn.AvgPool2d(2)
            )
            channels //= 2
    layers["head"] = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1))
    layers["classifier"] = nn.Sequential(nn.Flatten(), nn.Linear(channels, 1000))
    return nn.Sequential(layers)


def _resnet50(small: bool) -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification  # noqa: PLC0415 - a missing one costs a row

    widths = {"embedding_size": 8, "hidden_sizes": [16, 24, 32, 48]} if small else {}
    return ResNetForImageClassification(ResNetConfig(**widths))


#: By name.
NETWORKS: dict[str, Callable[[bool], nn.Module]] = {RESNET: _resnet50, DENSENET: _densenet121}


def network(name: str, batch: int, size: int, device: str, small: bool) -> tuple[nn.Module, Tensor]:
    """A network in training mode, and random images."""
    torch.manual_seed(0)
    module = NETWORKS[name](small).train().to(device, memory_format=torch.channels_last)
    images = torch.randn(batch, 3, size, size).to(device, memory_format=torch.channels_last)
    return Autocast(module), images
