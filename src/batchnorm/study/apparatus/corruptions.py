"""Images made worse in three ways and three strengths, as a camera or a sensor would."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["CORRUPTIONS", "SEVERITIES", "corrupted"]

#: What can be done to images.
CORRUPTIONS = ("noise", "blur", "contrast")

#: How strongly: of noise its standard deviation, in that of all pixels; of blur the Gaussian's, in shorter sides of an
#: image; of contrast what is left of it.
SEVERITIES = {"noise": (0.4, 0.8, 1.2), "blur": (0.03, 0.05, 0.08), "contrast": (0.5, 0.3, 0.2)}


def corrupted(images: Tensor, corruption: str, severity: int, seed: int) -> Tensor:
    """The images with one of :data:`CORRUPTIONS`.

    Args:
        images: Standardised ones (N, C, height, width): all their pixels together have a deviation of about 1.
        corruption: Which.
        severity: From 1; 0 gives the images as they are.
        seed: Decides the noise.
    """
    if not severity:
        return images
    strength = SEVERITIES[corruption][severity - 1]
    if corruption == "noise":
        noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
        # No pixel is darker or lighter than a pixel can be.
        return (images + strength * noise).clamp(float(images.min()), float(images.max()))
    if corruption == "contrast":
        mean = images.mean((1, 2, 3), keepdim=True)
        return mean + strength * (images - mean)
    return _blurred(images, strength * min(images.shape[2:]))


def _blurred(images: Tensor, deviation: float) -> Tensor:
    """A Gaussian of that many pixels along either axis; beyond the edge the edge's pixels go on."""
    reach = max(1, math.ceil(3 * deviation))
    places = torch.arange(-reach, reach + 1, dtype=images.dtype)
    kernel = torch.exp(-places.square() / (2 * deviation * deviation))
    kernel = (kernel / kernel.sum()).reshape(1, 1, -1, 1)
    count, channels, height, width = images.shape
    planes = images.reshape(count * channels, 1, height, width)
    planes = functional.conv2d(functional.pad(planes, (0, 0, reach, reach), "replicate"), kernel)
    planes = functional.conv2d(functional.pad(planes, (reach, reach, 0, 0), "replicate"), kernel.transpose(2, 3))
    return planes.reshape(images.shape)
