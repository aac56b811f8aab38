"""Sequences of different lengths in one batch: with a mask, padding changes nothing."""

from __future__ import annotations

import torch

import batchnorm

torch.manual_seed(0)
lengths = torch.tensor([9, 4, 6])
sequences = [5 + 2 * torch.randn(3, int(length)) for length in lengths]  # (C, L) each

# One tensor (N, C, L), padded with zeros, and a mask (N, L) that says what is real.
padded = torch.zeros(len(sequences), 3, int(lengths.max()))
for row, sequence in zip(padded, sequences, strict=True):
    row[:, : sequence.shape[1]] = sequence
mask = torch.arange(padded.shape[2]) < lengths[:, None]

with_mask, without_mask = batchnorm.BatchNorm1d(3, momentum=1.0), batchnorm.BatchNorm1d(3, momentum=1.0)
output = with_mask(padded, mask=mask)
without_mask(padded)
everything = torch.cat(sequences, dim=1)  # (C, all real positions)


def show(what: str, values: torch.Tensor) -> None:
    print(f"{what:<32}", *(f"{value:8.4f}" for value in values.tolist()))


print(f"{int(mask.sum())} of {mask.numel()} positions are real; means of the three channels:")
show("of the real positions", everything.mean(dim=1))
show("running mean with the mask", with_mask.running_mean)
show("running mean without it", without_mask.running_mean)
print("the mask keeps padding out of the statistics:", torch.allclose(with_mask.running_mean, everything.mean(dim=1)))
print("padding comes out as 0:", bool((output.movedim(1, -1)[~mask] == 0).all()))

# The batch may be padded further, with anything: the result at the real positions is the same.
longer = torch.cat([padded, torch.full((3, 3, 5), float("nan"))], dim=2)
longer_mask = torch.cat([mask, torch.zeros(3, 5, dtype=torch.bool)], dim=1)
again = batchnorm.BatchNorm1d(3)(longer, mask=longer_mask)
print("longer padding changes nothing:", torch.allclose(again[:, :, :9], output, atol=1e-6))
