"""Networks for the claims: plain stacks whose weights are decided by a seed, with batch norm where it is asked for.

Batch norm's parameters start as constants, so a network with it starts from the same weights as one without.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import nn

from .. import BatchNorm1d, BatchNorm2d

__all__ = ["convolutional", "fully_connected"]

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "linear": nn.Identity,
}


def convolutional(
    layers: Sequence[tuple[int, int]],
    *,
    activation: str,
    norm: str,
    channels: int,
    classes: int,
    seed: int,
    affine: bool = True,
) -> nn.Sequential:
    """A plain stack of 3×3 convolutions, each with its activation, then an average over space and a linear layer.

    Args:
        layers: Channels and stride of each convolution.
        activation: "relu" (He's initialisation), "sigmoid", "tanh" or "linear", which is none (Glorot's).
        norm: Where batch norm stands: "before" or "after" each activation, or "none".
        channels: Of the images.
        classes: Outputs.
        seed: Decides the weights, which are the same with and without batch norm.
        affine: Whether batch norm has gamma and beta.
    """
    generator = torch.Generator().manual_seed(seed)
    parts: list[nn.Module] = []
    for width, stride in layers:
        # The bias stays in every arm: batch norm cancels it, and the arms differ in one thing only.
        convolution = nn.Conv2d(channels, width, 3, stride, padding=1)
        _initialise(convolution, activation, generator)
        parts.append(convolution)
        parts += _activated(activation, norm, partial(BatchNorm2d, width, affine=affine))
        channels = width
    head = nn.Linear(channels, classes)
    _initialise(head, "linear", generator)
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


def fully_connected(
    sizes: Sequence[int], *, activation: str, norm: str, seed: int, affine: bool = True
) -> nn.Sequential:
    """Linear layers of these sizes (inputs, hidden layers, outputs); all but the last with activation and norm.

    Images are flattened first. The arguments are those of :func:`convolutional`.
    """
    generator = torch.Generator().manual_seed(seed)
    parts: list[nn.Module] = [nn.Flatten()]
    for place, (inputs, outputs) in enumerate(pairwise(sizes)):
        last = place == len(sizes) - 2
        linear = nn.Linear(inputs, outputs)
        _initialise(linear, "linear" if last else activation, generator)
        parts.append(linear)
        if not last:
            parts += _activated(activation, norm, partial(BatchNorm1d, outputs, affine=affine))
    return nn.Sequential(*parts)


def _initialise(layer: nn.Conv2d | nn.Linear, activation: str, generator: torch.Generator) -> None:
    if activation == "relu":
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
    else:
        nn.init.xavier_normal_(layer.weight, generator=generator)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]


def _activated(activation: str, norm: str, make_norm: Callable[[], nn.Module]) -> list[nn.Module]:
    active = _ACTIVATIONS[activation]()
    return {"before": [make_norm(), active], "after": [active, make_norm()], "none": [active]}[norm]
