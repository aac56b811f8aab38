"""Statistics of a network's batch norms over a whole set of images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .. import BatchNorm1d, BatchNorm2d
from ..reference import moments, pooled_moments

__all__ = ["walk"]


@torch.no_grad()
def walk(
    model: nn.Sequential, images: Tensor, visit: Callable[[BatchNorm1d | BatchNorm2d, Tensor, Tensor], None]
) -> None:
    """Passes all images in evaluation mode, layer by layer, and shows each norm with its input's mean and variance.

    The moments are of all images together, merged from parts. What a visit changes in a norm is in force for the
    layers after it.
    """
    model.eval()
    parts = list(images.split(500))
    for layer in model:
        if isinstance(layer, BatchNorm1d | BatchNorm2d):
            pooled = pooled_moments(moments(part.numpy()) for part in parts)
            visit(layer, torch.from_numpy(pooled.mean), torch.from_numpy(pooled.variance))
        parts = [layer(part) for part in parts]
