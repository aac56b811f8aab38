"""Padding among what norms count."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

import batchnorm
from doctor.plant import Case, healthy, planted

LENGTHS = torch.tensor([40, 33, 21, 12])


class Network(nn.Module):
    """Two convolutions with norms behind them, which do not hear of the mask."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.first_norm = nn.Conv1d(3, 8, 3, padding=1), nn.BatchNorm1d(8)
        self.second, self.second_norm = nn.Conv1d(8, 6, 3, stride=2, padding=1), nn.BatchNorm1d(6)

    def forward(self, values: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        hidden = torch.relu(self.first_norm(self.first(values)))
        return self.second_norm(self.second(hidden)).mean(2)


def padded() -> dict[str, Tensor]:
    mask = torch.arange(40) < LENGTHS[:, None]
    # Of a mean of its own, as spectrograms are: what is 0 is then far from it.
    return {"values": (torch.randn(4, 3, 40) + 3) * mask[:, None], "attention_mask": mask.long()}


@planted("BN009", "first_norm", "second_norm")
def a_mask_that_the_norms_do_not_hear_of() -> Case:
    return Case(Network(), [padded() for _ in range(3)])


@planted("BN009", "first_norm", "second_norm")
def zeros_and_no_mask() -> Case:
    return Case(Network(), [padded()["values"] for _ in range(3)])


@planted("BN009", "norm")
def a_mask_of_what_is_padding() -> Case:
    class Inverted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, values: Tensor, key_padding_mask: Tensor) -> Tensor:
            # Between layers padding does not look like any: attention has put something there.
            return self.norm(values + 5 * key_padding_mask[:, None] * torch.rand_like(values))

    batch = padded()
    return Case(Inverted(), [{"values": batch["values"], "key_padding_mask": batch["attention_mask"] == 0}])


@healthy("BN009")
def the_norms_are_given_the_mask() -> Case:
    class Masked(Network):
        def forward(self, values: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            mask = attention_mask.bool()
            hidden = torch.relu(self.first_norm(self.first(values), mask=mask))
            return self.second_norm(self.second(hidden), mask=mask[:, ::2]).mean(2)

    return Case(batchnorm.convert(Masked(), "batch"), [padded() for _ in range(3)])


def _given(**others: Any) -> list[Mapping[str, Any]]:
    return [{"values": torch.randn(4, 3, 40), **others} for _ in range(3)]


@healthy("BN009")
def nothing_is_padded() -> Case:
    return Case(Network(), _given(attention_mask=torch.ones(4, 40, dtype=torch.long)))


@healthy("BN009")
def a_mask_of_masked_training() -> Case:
    return Case(Network(), _given(attention_mask=torch.rand(4, 40) < 0.5))


@healthy("BN009")
def padding_that_is_like_the_data() -> Case:
    """It is counted, and changes nothing that could be told from chance."""
    return Case(Network(), _given(attention_mask=(torch.arange(40) < torch.tensor([40, 40, 40, 36])[:, None]).long()))


@healthy("BN009")
def one_sample_ends_with_silence() -> Case:
    batch = torch.randn(4, 3, 40)
    batch[1, :, 30:] = 0
    return Case(Network(), [batch, torch.randn(4, 3, 40)])


@healthy("BN009")
def sequences_of_letters() -> Case:
    letters = [nn.functional.one_hot(torch.randint(3, (4, 40)), 3).float().transpose(1, 2) for _ in range(3)]
    return Case(nn.Sequential(nn.BatchNorm1d(3), nn.Conv1d(3, 4, 1)), letters)


@healthy("BN009")
def zeros_behind_a_relu() -> Case:
    return Case(nn.Sequential(nn.Conv1d(3, 1, 1), nn.ReLU(), nn.BatchNorm1d(1)), [torch.randn(8, 3, 40)])


class WithText(Network):
    """Its mask is that of a text beside the values."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 6)

    def forward(self, values: Tensor, words: Tensor, attention_mask: Tensor) -> Tensor:
        return super().forward(values) + (self.embedding(words) * attention_mask[..., None]).mean(1)


def _with_text(length: int, values: Tensor) -> dict[str, Tensor]:
    words = torch.randint(9, (4, 40))
    # What changes along the sequence is another one if its end is left out.
    values = values[..., :length] + torch.linspace(-2, 2, length)
    return {"values": values, "words": words, "attention_mask": (torch.arange(40) < LENGTHS[:, None]).long()}


@healthy("BN009")
def a_mask_of_the_text_beside_it() -> Case:
    return Case(WithText(), [_with_text(40, torch.randn(4, 3, 40)) for _ in range(3)])


@healthy("BN009")
def a_mask_of_a_longer_text() -> Case:
    return Case(WithText(), [_with_text(32, torch.randn(4, 3, 40)) for _ in range(3)])


@planted("BN009", "first_norm", "second_norm")
def a_mask_of_both() -> Case:
    text = [{**_with_text(40, torch.randn(4, 3, 40)), "values": padded()["values"]} for _ in range(3)]
    return Case(WithText(), text)


@healthy("BN009")
def frozen_statistics() -> Case:
    model = Network()
    batchnorm.freeze(model)
    return Case(model, [padded() for _ in range(3)])
