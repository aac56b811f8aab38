"""The tensors of a case, and a pool of copies of them to rotate through."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .cases import Case

__all__ = ["Inputs", "as_format", "copies", "draw"]

_MOST_COPIES = 256


@dataclass
class Inputs:
    """What a training step gives a norm layer.

    Attributes:
        x: The input, (N, C, *spatial), in the case's format and dtype.
        residual: What is added, like x; or None.
        dy: The gradient of the output, like x.
        weight: γ, (C,), float32.
        bias: β, (C,), float32.
        running_mean: Of the population so far, (C,), float32.
        running_var: Likewise.
    """

    x: Tensor
    residual: Tensor | None
    dy: Tensor
    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def copy(self) -> Inputs:
        """The same numbers in fresh memory; the vectors are shared."""
        residual = None if self.residual is None else self.residual.clone()
        vectors = (self.weight, self.bias, self.running_mean, self.running_var)
        return Inputs(self.x.clone(), residual, self.dy.clone(), *vectors)

    def to(self, device: str) -> Inputs:
        """The same on a device, strides kept."""
        residual = None if self.residual is None else self.residual.to(device)
        vectors = (self.weight, self.bias, self.running_mean, self.running_var)
        return Inputs(self.x.to(device), residual, self.dy.to(device), *(vector.to(device) for vector in vectors))

    def tensors(self) -> Iterator[Tensor]:
        """Those of the input's size."""
        yield self.x
        yield self.dy
        if self.residual is not None:
            yield self.residual


def as_format(tensor: Tensor, format: str) -> Tensor:
    """The tensor with its channels stored first or last; (N, C, L) is then stored (N, L, C).

    >>> as_format(torch.zeros(2, 3, 5), "channels-last").stride()
    (15, 1, 3)
    """
    if format == "contiguous" or tensor.dim() == 2:
        return tensor.contiguous()
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1)


def draw(case: Case) -> Inputs:
    """The same numbers for a case at every call, on the CPU.

    Channels have different means and spreads, as in a network.
    """
    generator = torch.Generator().manual_seed(zlib.crc32(case.name.encode()))
    dtype = getattr(torch, case.dtype)
    channels = case.shape[1]

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    vector = [1] * (len(case.shape) - 2)
    mean, std = normal(channels, *vector), torch.exp(0.3 * normal(channels, *vector))
    x = as_format((normal(*case.shape) * std + mean).to(dtype), case.format)
    residual = as_format(normal(*case.shape).to(dtype), case.format) if case.residual else None
    dy = as_format(normal(*case.shape).to(dtype), case.format)
    weight, bias = 1 + 0.2 * normal(channels), 0.5 * normal(channels)
    # Near the batch's own, as after some training, so that evaluation has realistic outputs.
    running_mean = mean.flatten() + 0.1 * normal(channels)
    running_var = std.flatten().square() * torch.exp(0.1 * normal(channels))
    return Inputs(x, residual, dy, weight, bias, running_mean, running_var)


def copies(case: Case, caches: int) -> int:
    """How many sets of inputs to rotate through: their bytes exceed twice the L2 caches that are at work.

    At least two, and at most 256: beyond that a tiny tensor is measured from L2 rather than L1.

    Args:
        case: The case.
        caches: Bytes of these caches together.
    """
    bytes_of_one = (2 + case.residual if case.training else 1 + case.residual) * case.bytes
    return min(max(2, math.ceil(2 * caches / bytes_of_one)), _MOST_COPIES)
