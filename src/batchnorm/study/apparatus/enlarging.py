"""Networks that enlarge photographs twofold, with and without batch norm and skips: trained, and measured.

The shape is that of SRResNet (with batch norm) and EDSR (without), much smaller.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate

from ... import BatchNorm2d
from ..claim import Report

__all__ = [
    "Enlarger",
    "Photographs",
    "Training",
    "by_own_statistics",
    "enlarged",
    "photographs",
    "psnr",
    "repeated",
    "score",
    "small",
    "train",
]

_SCALE = 2


class Enlarger(nn.Module):
    """A convolution, blocks of two, one more, and a last one whose channels become pixels.

    Args:
        channels: Of all layers between the first and the last.
        blocks: Of two convolutions, the first with a ReLU.
        norm: Whether batch norm follows each convolution but the first and the last.
        skips: Whether what goes into a block is added to what comes out, and what goes into the first block to what
            comes out of the convolution after the last. Without, all there is of the image passes every layer.
        mean: Of the photographs, by channel: (3,).
        deviation: Of the photographs; the network works on values minus the mean, over this.
        seed: Decides the weights (He's initialisation), the same with and without norms and skips.
    """

    def __init__(
        self, channels: int, blocks: int, *, norm: bool, skips: bool, mean: Tensor, deviation: float, seed: int
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.skips, self.mean, self.deviation = skips, mean.reshape(-1, 1, 1), deviation

        def convolution(inputs: int, outputs: int, nonlinearity: str) -> nn.Conv2d:
            layer = nn.Conv2d(inputs, outputs, 3, padding=1)
            nn.init.kaiming_normal_(layer.weight, nonlinearity=nonlinearity, generator=generator)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
            return layer

        def normed(nonlinearity: str) -> list[nn.Module]:
            layer = convolution(channels, channels, nonlinearity)
            return [layer, BatchNorm2d(channels)] if norm else [layer]

        self.first = convolution(3, channels, "linear")
        self.blocks = nn.ModuleList(nn.Sequential(*normed("relu"), nn.ReLU(), *normed("linear")) for _ in range(blocks))
        self.after = nn.Sequential(*normed("linear"))
        self.last = convolution(channels, 3 * _SCALE * _SCALE, "linear")
        with torch.no_grad():
            # So that it begins with nearly the mean colour, not with noise that training must first take away.
            self.last.weight.mul_(0.1)

    def forward(self, images: Tensor) -> Tensor:
        """Takes (N, 3, height, width) and gives (N, 3, 2·height, 2·width)."""
        first = self.first((images - self.mean) / self.deviation)
        inner = first
        for block in self.blocks:
            inner = inner + block(inner) if self.skips else block(inner)
        inner = first + self.after(inner) if self.skips else self.after(inner)
        return nn.functional.pixel_shuffle(self.last(inner), _SCALE) * self.deviation + self.mean


@dataclass(frozen=True)
class Photographs:
    """Photographs of full size; the small ones are their averages over squares of 2×2 pixels.

    Args:
        train: The upper three quarters of those that a network learns from.
        validation: Their lower quarters.
        test: Those left out, whole, by name.
    """

    train: Sequence[Tensor]
    validation: Sequence[Tensor]
    test: Mapping[str, Tensor]

    @property
    def mean(self) -> Tensor:
        """Of the training pixels, by channel."""
        return torch.stack([image.mean((1, 2)) for image in self.train]).mean(0)

    @property
    def deviation(self) -> float:
        """Of the training pixels about that mean, all channels together."""
        return float(
            torch.stack([(image - self.mean.reshape(-1, 1, 1)).square().mean() for image in self.train]).mean().sqrt()
        )


def photographs(images: Mapping[str, Tensor], left_out: Sequence[str]) -> Photographs:
    """Divides photographs into those left out and the parts of the others."""
    others = [image for name, image in images.items() if name not in left_out]
    upper = [3 * image.shape[1] // 4 // _SCALE * _SCALE for image in others]
    return Photographs(
        [image[:, :rows] for image, rows in zip(others, upper, strict=True)],
        [image[:, rows:] for image, rows in zip(others, upper, strict=True)],
        {name: images[name] for name in left_out},
    )


@dataclass(frozen=True)
class Training:
    """How a network is trained: Adam on the mean absolute error (EDSR's loss), the rate falling to 0.

    Args:
        steps: Updates.
        batch_size: Patches an update.
        patch: Side of a patch of the full size.
    """

    steps: int
    batch_size: int
    patch: int


def small(images: Tensor) -> Tensor:
    """The images at half their size: averages of 2×2 pixels."""
    return avg_pool2d(images, _SCALE)


def patches(images: Sequence[Tensor], training: Training, generator: torch.Generator) -> Tensor:
    """Patches at random places, turned or mirrored: (N, 3, patch, patch)."""
    cut = []
    for _ in range(training.batch_size):
        image = images[_draw(len(images), generator)]
        top, left = (_draw(length - training.patch + 1, generator) for length in image.shape[1:])
        patch = image[:, top : top + training.patch, left : left + training.patch]
        if _draw(2, generator):
            patch = patch.flip(2)
        cut.append(patch.rot90(_draw(4, generator), (1, 2)))
    return torch.stack(cut)


def _draw(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))


def train(
    model: Enlarger, images: Sequence[Tensor], training: Training, rate: float, *, seed: int, report: Report
) -> bool:
    """Trains a model in place; says whether all stayed finite. The seed decides the patches."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), rate)
    model.train()
    for step in range(training.steps):
        wanted = patches(images, training, generator)
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - step / training.steps)
        loss = nn.functional.l1_loss(model(small(wanted)), wanted)
        if not math.isfinite(loss.item()):
            return False
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 49:
            report(
                (step + 1) / training.steps, f"rate {rate:g}, step {step + 1}/{training.steps}, loss {loss.item():.4f}"
            )
    return all(bool(weight.isfinite().all()) for weight in model.parameters())


@torch.no_grad()
def enlarged(model: Enlarger, image: Tensor) -> Tensor:
    """The full size of a photograph from its small one, in evaluation mode, from 0 to 1."""
    return model.eval()(small(image[None]))[0].clamp(0, 1)


@torch.no_grad()
def by_own_statistics(model: Enlarger, image: Tensor) -> Tensor:
    """The same with the statistics of this photograph, as in training on it alone; the model stays as it is."""
    return copy.deepcopy(model).train()(small(image[None]))[0].clamp(0, 1)


def repeated(image: Tensor) -> Tensor:
    """Each pixel of the small photograph four times: what anybody can do."""
    return interpolate(small(image[None]), scale_factor=_SCALE, mode="nearest")[0]


def psnr(output: Tensor, wanted: Tensor) -> float:
    """Peak signal-to-noise ratio in decibels, of values from 0 to 1: −10·log₁₀ of the mean square error."""
    return -10 * math.log10(float((output - wanted).double().square().mean()))


def score(output: Tensor, wanted: Tensor) -> dict[str, float]:
    """PSNR, and how far contrast, brightness and colour are off.

    "contrast" is how far the standard deviation of all pixels is off, in per cent; "brightness" by how much their mean
    is, in levels of 255; "colour" by how much the channels' means are beyond that, on average, in such levels.
    """
    shift = 255 * (output - wanted).double().mean((1, 2))
    return {
        "psnr": psnr(output, wanted),
        "contrast": 100 * abs(float(output.double().std() / wanted.double().std()) - 1),
        "brightness": abs(float(shift.mean())),
        "colour": float((shift - shift.mean()).abs().mean()),
    }
