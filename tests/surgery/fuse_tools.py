"""What the tests of ``fuse`` share."""

from __future__ import annotations

import torch
from torch import Tensor

from batchnorm.surgery import Surgery


def images(n: int = 4, channels: int = 3) -> Tensor:
    return torch.randn(n, channels, 6, 6, generator=torch.Generator().manual_seed(0))


def outcomes(result: Surgery) -> dict[str, tuple[str, str]]:
    return {each.layer: (each.action, each.detail) for each in [*result.changed, *result.kept]}
