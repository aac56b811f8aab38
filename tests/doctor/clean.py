"""Networks of others with nothing wrong that we put there: trained a little on data that means something, recalibrated.

What the doctor says of them must be true. They have the layers of the real ones, in their order, with fewer channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import Wav2Vec2ConformerConfig, Wav2Vec2ConformerForSequenceClassification

import batchnorm
from doctor.plant import Case
from surgery.models import NETWORKS

# A layer that sees one value a sample sees this many: fewer than 32 are too few by a rule, and 32 are the edge of it.
_BATCH = 48


@dataclass(frozen=True)
class Clean:
    """A network, what it learns, and how.

    Attributes:
        build: Gives it, with random weights.
        data: Inputs and targets, or dicts of keywords.
        loss: Of its output and a target; None where the network computes its own.
        optimizer: Of groups of parameters.
        steps: Of training.
    """

    build: Callable[[], nn.Module]
    data: Callable[[], Any]
    loss: Callable[[Any, Tensor], Tensor] | None
    optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
    steps: int = 16

    def case(self) -> Case:
        """Trained and recalibrated, the same each time."""
        torch.manual_seed(0)
        model, batches = self.build().train(), self.data()
        optimizer = self.optimizer(batchnorm.parameter_groups(model, 1e-4))
        case = Case(model, batches, self.loss, optimizer)
        self._train(case)
        batchnorm.recalibrate(model, batches)
        return case

    def _train(self, case: Case) -> None:
        done = 0
        while done < self.steps:
            for batch in case.batches:
                case.optimizer.zero_grad()
                self._loss(case.model, batch).backward()
                case.optimizer.step()
                done += 1
                if done == self.steps:
                    break

    def _loss(self, model: nn.Module, batch: Any) -> Tensor:
        if self.loss is None:
            return model(**batch).loss
        return self.loss(model(batch[0]), batch[1])


def _loader(*tensors: Tensor) -> Iterable[Any]:
    draw = torch.Generator().manual_seed(0)
    return DataLoader(TensorDataset(*tensors), _BATCH, shuffle=True, drop_last=True, generator=draw)


@cache
def _digits(size: int, count: int) -> tuple[Tensor, Tensor]:
    """Handwritten digits, enlarged, with values around 0."""
    digits = load_digits()
    images = torch.tensor(digits.images[:count], dtype=torch.float32)[:, None] / 8 - 1
    return F.interpolate(images, size=(size, size), mode="bilinear"), torch.tensor(digits.target[:count])


def _images() -> Iterable[Any]:
    """In three colours of their own, and noisy. What is to be learnt is whether a digit is odd."""
    images, targets = _digits(64, 10 * _BATCH)
    colours = torch.rand(len(images), 3, 1, 1) + 0.5
    return _loader(images * colours + 0.1 * torch.randn(len(images), 3, 64, 64), targets % 2)


def _volumes() -> Iterable[Any]:
    """Digits that are drawn through some of the slices, in noise, and where they are."""
    images, _ = _digits(16, 6 * _BATCH)
    first, depth = torch.randint(0, 8, (len(images), 1)), torch.arange(16)
    within = (depth >= first) & (depth < first + 8)
    inside = (images[:, 0] > 0)[:, None] & within[:, :, None, None]
    volumes = inside.float()[:, None] + 0.5 * torch.randn(len(images), 1, 16, 16, 16)
    return _loader(volumes, inside.long())


def _voices(padded: bool) -> Callable[[], Iterable[Any]]:
    """Tones of a pitch that is the target, with overtones and noise; of equal lengths or not."""

    def data() -> Iterable[Any]:
        count, length = 6 * _BATCH, 2400
        labels = torch.randint(0, 4, (count,))
        pitch = 0.02 * 1.5 ** labels[:, None] * (1 + 0.05 * torch.randn(count, 1))
        phase = 2 * torch.pi * (pitch * torch.arange(length) + torch.rand(count, 1))
        waves = phase.sin() + 0.5 * (2 * phase).sin() + 0.25 * (3 * phase).sin() + 0.1 * torch.randn(count, length)
        lengths = torch.randint(length // 3, length + 1, (count,)) if padded else torch.full((count,), length)
        mask = (torch.arange(length) < lengths[:, None]).long()
        rows = [
            {"input_values": wave, "attention_mask": own, "labels": label}
            for wave, own, label in zip(waves * mask, mask, labels, strict=True)
        ]
        draw = torch.Generator().manual_seed(0)
        return DataLoader(rows, _BATCH, shuffle=True, drop_last=True, generator=draw)

    return data


def conformer() -> nn.Module:
    """Two layers, each with a norm in its convolution module."""
    return Wav2Vec2ConformerForSequenceClassification(
        Wav2Vec2ConformerConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            conv_dim=(16, 16, 16, 16),
            conv_kernel=(10, 3, 3, 2),
            conv_stride=(5, 2, 2, 2),
            num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=4,
            apply_spec_augment=False,  # by NumPy's random numbers
            num_labels=4,
        )
    )


def efficientnet() -> nn.Module:
    """Its library draws gamma around 0 with a standard deviation of 0.02: here it is 1.

    With gamma as drawn, variances fall under 1e-30 by the seventh block, beside an eps of 1e-3, and nothing is learnt.
    """
    network = _network("EfficientNet-B0 (transformers)")()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    return network


def _classified(output: Any, targets: Tensor) -> Tensor:
    return F.cross_entropy(getattr(output, "logits", output).float(), targets)


def _sgd(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=0.02, momentum=0.9)


def _adamw(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=1e-3)


def _network(name: str) -> Callable[[], nn.Module]:
    network = NETWORKS[name]
    return lambda: network.module(network.small_size, True)


#: By name, which says where each comes from.
CLEAN: dict[str, Clean] = {
    **{
        name: Clean(_network(name), _images, _classified, _sgd)
        for name in (
            "ResNet-50 (transformers)",
            "RegNet (transformers)",
            "MobileNetV2 (transformers)",
            "DenseNet-121 (monai)",
        )
    },
    "LeViT (transformers)": Clean(_network("LeViT (transformers)"), _images, _classified, _adamw),
    "EfficientNet-B0 (transformers)": Clean(efficientnet, _images, _classified, _adamw),
    "Wav2Vec2-Conformer (transformers)": Clean(conformer, _voices(padded=False), None, _adamw),
    "Wav2Vec2-Conformer (transformers), padded": Clean(conformer, _voices(padded=True), None, _adamw),
    "UNet (monai)": Clean(_network("UNet (monai)"), _volumes, F.cross_entropy, _sgd),
    "SegResNet (monai)": Clean(_network("SegResNet (monai)"), _volumes, F.cross_entropy, _sgd),
}
