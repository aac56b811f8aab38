"""Residual networks whose branches have batch norm, or none, or none and a scalar that starts at 0."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from ... import BatchNorm1d, BatchNorm2d
from ..data import Split
from ..subjects import Subject

__all__ = [
    "BRANCHES",
    "PLAIN",
    "SKIP_INIT",
    "WITH_NORM",
    "Block",
    "Residual",
    "convolutional_residual",
    "fully_connected_residual",
]

_Follows: TypeAlias = Literal["linear", "relu"]

#: What a branch holds: batch norm before each ReLU, nothing instead, or nothing and a scalar at its end that starts
#: at 0 (De & Smith 2020, arXiv 2002.10444).
WITH_NORM, PLAIN, SKIP_INIT = BRANCHES = ("batch norm", "none", "SkipInit")


class Block(nn.Module):
    """Skip plus branch: x + α·W₂φ(N(W₁φ(N(x)))), with N batch norm or nothing, φ ReLU, and α = 1 but for SkipInit.

    This order, in which nothing stands on the skip, is that of He et al. 2016, "Identity Mappings in Deep Residual
    Networks" (arXiv 1603.05027).

    Args:
        first: W₁.
        second: W₂.
        norms: The two N; identities but for batch norm.
        skip: What stands on the skip where the size changes; otherwise the identity.
        scaled: Whether there is an α, which starts at 0.
    """

    def __init__(
        self, first: nn.Module, second: nn.Module, norms: Sequence[nn.Module], skip: nn.Module, *, scaled: bool
    ) -> None:
        super().__init__()
        self.branch = nn.Sequential(norms[0], nn.ReLU(), first, norms[1], nn.ReLU(), second)
        self.skip = skip
        self.scale = nn.Parameter(torch.zeros(())) if scaled else None

    def parts(self, input: Tensor) -> tuple[Tensor, Tensor]:
        """Skip and branch before they are added."""
        branch = self.branch(input)
        return self.skip(input), branch if self.scale is None else self.scale * branch

    def forward(self, input: Tensor) -> Tensor:
        """Takes a batch."""
        skip, branch = self.parts(input)
        return skip + branch


def fully_connected_residual(
    inputs: int, width: int, blocks: int, *, branch: str, classes: int, seed: int
) -> nn.Sequential:
    """A linear layer, blocks of two of them, batch norm if the branches have it, ReLU, a linear layer.

    Args:
        inputs: Numbers an image.
        width: Units of every layer but the last.
        blocks: How many.
        branch: One of :data:`BRANCHES`.
        classes: Outputs.
        seed: Decides the weights, which are the same for each kind of branch.
    """
    generator = torch.Generator().manual_seed(seed)

    def linear(before: int, after: int, follows: _Follows = "relu") -> nn.Module:
        return _initialised(nn.Linear(before, after), follows, generator)

    layers: list[nn.Module] = [nn.Flatten(), linear(inputs, width, "linear")]
    for _ in range(blocks):
        norms = [_norm(branch, BatchNorm1d, width) for _ in range(2)]
        layers.append(
            Block(linear(width, width), linear(width, width), norms, nn.Identity(), scaled=branch == SKIP_INIT)
        )
    return nn.Sequential(*layers, _norm(branch, BatchNorm1d, width), nn.ReLU(), linear(width, classes, "linear"))


def convolutional_residual(
    stages: Sequence[tuple[int, int, int]], *, stem: int, channels: int, classes: int, seed: int
) -> nn.Sequential:
    """A convolution, blocks of two 3×3 convolutions, batch norm, ReLU, an average over space, a linear layer.

    Where width or size change, the skip is a 1×1 convolution.

    Args:
        stages: Width, stride of the first block, and number of blocks, one stage after another.
        stem: Stride of the first convolution, which is one wider than that.
        channels: Of the images.
        classes: Outputs.
        seed: Decides the weights.
    """
    generator = torch.Generator().manual_seed(seed)

    def convolution(before: int, after: int, size: int, stride: int, follows: _Follows) -> nn.Module:
        return _initialised(nn.Conv2d(before, after, size, stride, padding=size // 2), follows, generator)

    width = stages[0][0]
    layers: list[nn.Module] = [convolution(channels, width, stem + 1, stem, "linear")]
    for wider, first_stride, count in stages:
        for place in range(count):
            stride = first_stride if place == 0 else 1
            same = width == wider and stride == 1
            layers.append(
                Block(
                    convolution(width, wider, 3, stride, "relu"),
                    convolution(wider, wider, 3, 1, "relu"),
                    [BatchNorm2d(width), BatchNorm2d(wider)],
                    nn.Identity() if same else convolution(width, wider, 1, stride, "linear"),
                    scaled=False,
                )
            )
            width = wider
    head = _initialised(nn.Linear(width, classes), "linear", generator)
    return nn.Sequential(*layers, BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


def _norm(branch: str, make: Callable[[int], nn.Module], width: int) -> nn.Module:
    return make(width) if branch == WITH_NORM else nn.Identity()


def _initialised(layer: nn.Conv2d | nn.Linear, follows: _Follows, generator: torch.Generator) -> nn.Module:
    """He's initialisation for what follows a ReLU; without its factor 2 for what does not; biases 0."""
    nn.init.kaiming_normal_(layer.weight, nonlinearity=follows, generator=generator)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


@dataclass(frozen=True)
class Residual(Subject):
    """A residual network with batch norm before each ReLU.

    Args:
        stages: As :func:`convolutional_residual` takes them.
        stem: Stride of the first convolution.
    """

    stages: tuple[tuple[int, int, int], ...]
    stem: int = 4

    @property
    def depth(self) -> int:
        """Convolutions on the longest way, and the linear layer."""
        return 2 + 2 * sum(count for _, _, count in self.stages)

    @property
    def description(self) -> str:
        """Depth, widths and blocks."""
        widths = ", ".join(str(width) for width, _, _ in self.stages)
        counts = {count for _, _, count in self.stages}
        blocks = f"{counts.pop()} each" if len(counts) == 1 else ", ".join(str(count) for _, _, count in self.stages)
        return (
            f"a residual network of depth {self.depth}: a convolution of stride {self.stem}, blocks of two 3×3 "
            f"convolutions with {widths} channels, {blocks}, with batch norm before each ReLU, the average over space "
            "and a linear layer"
        )

    def build(self, parts: Split, seed: int) -> nn.Module:
        """The network, with He's initialisation."""
        return convolutional_residual(
            self.stages,
            stem=self.stem,
            channels=parts.channels,
            classes=parts.classes,
            seed=seed,
        )
