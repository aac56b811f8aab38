"""Where real networks have batch norm: the shape of every norm, what follows it, and how often.

Each function walks one architecture as its authors give it, for one image of 224² pixels (the 3-D U-Net: one volume of
64³), and yields its norms in the order of the forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

__all__ = ["NETWORKS", "Norm", "densenet", "efficientnet_b0", "mobilenet_v2", "resnet", "unet_3d"]


@dataclass(frozen=True)
class Norm:
    """One norm layer in a network.

    Args:
        channels: C.
        spatial: The input's spatial size, such as ``(56, 56)``.
        activation: What follows the norm (and the sum), by its name in :mod:`batchnorm.activation`.
        residual: Whether the block's input is added between norm and activation.
    """

    channels: int
    spatial: tuple[int, ...]
    activation: str = "identity"
    residual: bool = False


def _square(channels: int, size: int, activation: str = "identity", residual: bool = False) -> Norm:
    return Norm(channels, (size, size), activation, residual)


def resnet(blocks: tuple[int, ...], *, bottleneck: bool) -> Iterator[Norm]:
    """ResNet (He et al. 2015, arXiv 1512.03385), with the stride on the 3×3 convolution of a bottleneck.

    The stride on the 3×3 is what torchvision and most code since have; the paper has it on the first 1×1.

    Args:
        blocks: Blocks a stage: (2, 2, 2, 2) is ResNet-18, (3, 4, 6, 3) with bottlenecks ResNet-50.
        bottleneck: Whether a block is 1×1, 3×3, 1×1 rather than two 3×3.
    """
    yield _square(64, 112, "relu")
    before, size = 64, 56
    for stage, count in enumerate(blocks):
        width = 64 * 2**stage
        after = 4 * width if bottleneck else width
        for block in range(count):
            entered = size
            size //= 2 if stage and block == 0 else 1
            if bottleneck:
                yield _square(width, entered, "relu")
            yield _square(width, size, "relu")
            if before != after:
                yield _square(after, size)  # of the projection of the residual
            yield _square(after, size, "relu", residual=True)
            before = after


def mobilenet_v2() -> Iterator[Norm]:
    """MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381), table 2: the projections have no activation."""
    yield _square(32, 112, "relu6")
    before, size = 32, 112
    table = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for expansion, after, count, stride in table:
        for block in range(count):
            step = stride if block == 0 else 1
            hidden = expansion * before
            if expansion != 1:
                yield _square(hidden, size, "relu6")
            size //= step
            yield _square(hidden, size, "relu6")
            yield _square(after, size, residual=step == 1 and before == after)
            before = after
    yield _square(1280, size, "relu6")


def efficientnet_b0() -> Iterator[Norm]:
    """EfficientNet-B0 (Tan & Le 2019, arXiv 1905.11946), table 1.

    Training drops whole branches between the last norm of a block and the sum, so that sum is no part of the norm.
    """
    yield _square(32, 112, "silu")
    before, size = 32, 112
    table = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 40, 2, 2),
        (6, 80, 3, 2),
        (6, 112, 3, 1),
        (6, 192, 4, 2),
        (6, 320, 1, 1),
    )
    for expansion, after, count, stride in table:
        for block in range(count):
            hidden = expansion * before
            if expansion != 1:
                yield _square(hidden, size, "silu")
            size //= stride if block == 0 else 1
            yield _square(hidden, size, "silu")
            yield _square(after, size)
            before = after
    yield _square(1280, size, "silu")


def densenet(blocks: tuple[int, ...], growth: int = 32) -> Iterator[Norm]:
    """DenseNet-BC (Huang et al. 2016, arXiv 1608.06993), table 1; (6, 12, 24, 16) is DenseNet-121.

    The norm stands before the convolution, so its input is all that came before, concatenated.

    Args:
        blocks: Layers a block.
        growth: Channels that each layer adds.
    """
    yield _square(64, 112, "relu")
    channels, size = 64, 56
    for block, layers in enumerate(blocks):
        for _ in range(layers):
            yield _square(channels, size, "relu")
            yield _square(4 * growth, size, "relu")
            channels += growth
        yield _square(channels, size, "relu")  # of the transition; of the classifier after the last block
        if block + 1 < len(blocks):
            channels //= 2
            size //= 2


def unet_3d(size: int = 64) -> Iterator[Norm]:
    """3-D U-Net (Çiçek et al. 2016, arXiv 1606.06650), figure 2, with padded convolutions.

    Args:
        size: Side of the volume.
    """
    for level in range(4):
        side = (size // 2**level,) * 3
        yield Norm(32 * 2**level, side, "relu")
        yield Norm(64 * 2**level, side, "relu")
    for level in (2, 1, 0):
        side = (size // 2**level,) * 3
        yield Norm(64 * 2**level, side, "relu")
        yield Norm(64 * 2**level, side, "relu")


#: By name: the samples of a batch, and the network's norms.
NETWORKS: dict[str, tuple[int, Callable[[], Iterator[Norm]]]] = {
    "resnet18": (32, lambda: resnet((2, 2, 2, 2), bottleneck=False)),
    "resnet50": (32, lambda: resnet((3, 4, 6, 3), bottleneck=True)),
    "mobilenet_v2": (32, mobilenet_v2),
    "efficientnet_b0": (32, efficientnet_b0),
    "densenet121": (32, lambda: densenet((6, 12, 24, 16))),
    "unet_3d": (2, unet_3d),
}
