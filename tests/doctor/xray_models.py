"""Models that the X-ray page is tried on."""

from typing import Any

import torch
from torch import Tensor, nn

import batchnorm
from batchnorm import Diagnosis

EVIL = "</script><script>alert('x')</script><img src=http:__evil>"


def network() -> tuple[nn.Sequential, list[Tensor]]:
    """Two norms, and two batches."""
    model = nn.Sequential(
        *(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.Conv2d(4, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
    )
    return model, [torch.randn(8, 3, 6, 6) for _ in range(2)]


def diagnosed(model: nn.Module, batches: list[Tensor], **options: Any) -> Diagnosis:
    """By two rules, which need all that the page shows."""
    return batchnorm.diagnose(model, batches=batches, **{"select": ["BN004", "BN005"], **options})


def evil() -> Diagnosis:
    """A model whose class and layers are named to be markup, and which is poisoned."""
    inner, batches = network()
    model = type(EVIL, (nn.Module,), {"forward": lambda self, input: inner(input)})()
    model._modules[EVIL] = inner
    inner[1].running_mean[0] = torch.nan
    inner[4].running_mean += 1
    return diagnosed(model, batches)
