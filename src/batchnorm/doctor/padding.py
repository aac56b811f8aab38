"""Padding in what a norm is given: by the masks that come with the batches, or by its looks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..population.batches import model_input
from .evidence import Padding

__all__ = ["padding_of", "says_of_all", "valid_positions"]

# Where more neighbours than these are equal elsewhere too, as zeros behind a ReLU or letters of a sequence are, equal
# ones at the end say nothing.
_PLATEAUS = 0.05

# Around padding a convolution has seen data: of the positions that a mask excludes, so many must be constant where the
# mask may be another input's.
_CONSTANT = 0.5

# Constant input stays constant through a convolution but for its roundings: so far apart, in standard deviations,
# may neighbours lie that count as equal.
_ROUNDING = 1e-5


def valid_positions(batch: Any) -> Tensor | None:
    """Which positions of a batch's samples are no padding, (N, T) bool, by a mask in it; None where none says so.

    A mask of padding excludes one end of a sample. Others, such as those of masked training, are none.

    Example:
        >>> valid_positions({"input_values": torch.randn(2, 3), "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])})
        tensor([[ True,  True,  True],
                [ True,  True, False]])
    """
    input = model_input(batch)
    for name, value in input.items() if isinstance(input, Mapping) else ():
        if "mask" not in str(name) or not isinstance(value, Tensor) or value.dim() != 2 or value.is_floating_point():
            continue
        # As torch.nn.MultiheadAttention has it: there, what is True is padding.
        valid = (value == 0) if "padding" in str(name) else (value != 0)
        falls = valid.to(torch.int8).diff(dim=1)
        at_one_end = (falls <= 0).all() or (falls >= 0).all()
        if valid.any() and not valid.all() and at_one_end:
            return valid
    return None


def says_of_all(batch: Any, valid: Tensor) -> bool:
    """Whether what a mask says holds for whatever the batch's inputs become: none of them may be another sequence.

    Of floating-point numbers each input has the mask's positions, and is the only one to have them, or holds one value
    in a sample where these are excluded.

    Example:
        >>> valid = torch.tensor([[True, True, True], [True, False, False]])
        >>> says_of_all({"mask": valid, "values": torch.randn(2, 3)}, valid)
        True
        >>> says_of_all({"mask": valid, "values": torch.randn(2, 4, 3), "words": torch.ones(2, 3)}, valid)
        False
    """
    input = model_input(batch)
    assert isinstance(input, Mapping)
    samples, length = valid.shape
    entries = [
        value
        for name, value in input.items()
        if "mask" not in str(name) and isinstance(value, Tensor) and value.dim() > 1 and len(value) == samples
    ]
    fitting = [value for value in entries if length in (value.shape[1], value.shape[-1])]
    return all(
        any(value is each for each in fitting) and (len(fitting) == 1 or _is_constant_there(value, valid))
        for value in entries
        if value.is_floating_point()
    )


def _is_constant_there(value: Tensor, valid: Tensor) -> bool:
    positions = value.movedim(-1, 1) if value.shape[1] != valid.shape[1] else value
    excluded = positions.flatten(2) if positions.dim() > 2 else positions[..., None]
    return all(
        bool((ends == ends[:1]).all())
        for sample, kept in zip(excluded, valid.to(value.device), strict=True)
        if len(ends := sample[~kept])
    )


def padding_of(
    input: Tensor, mean: Tensor, var: Tensor, valid: Tensor | None, *, certain: bool = True
) -> Padding | None:
    """The padding among (N, C, L) input, and what it does to the statistics; None where there is none.

    Args:
        input: What a norm is given, without a mask.
        mean: Its mean, (C,) float64 on the CPU.
        var: Its biased variance, likewise.
        valid: Which positions of the batch are no padding, (N, T), where masks say so: T may be another length.
        certain: Whether that must be so of this input (:func:`says_of_all`); else it counts if it looks so too.
    """
    samples, _, length = input.shape
    if length < 2 or not input.numel():
        return None
    by_mask = valid is not None and valid.shape[0] == samples and valid.shape[1] >= length
    if by_mask:
        assert valid is not None
        # A layer with stride has fewer positions: each stands for those above it, and the middle one decides.
        above = ((torch.arange(length, device=input.device) + 0.5) * (valid.shape[1] / length)).long()
        kept = valid.to(input.device)[:, above]
        by_mask = certain or _looks_so(input, var, kept)
    if not by_mask:
        kept = torch.arange(length, device=input.device) < (length - _constant_ends(input, var))[:, None]
    padded = int(kept.numel() - kept.sum())
    if padded in (0, kept.numel()):
        return None
    _, mean_kept, var_kept = (each.cpu() for each in torch.ops.batchnorm.double_moments(input.detach(), kept))
    tiny = torch.finfo(torch.float32).tiny
    shift = (mean - mean_kept).abs() / var_kept.clamp(min=tiny).sqrt()
    ratios = (var.clamp(min=tiny) / var_kept.clamp(min=tiny)).log()
    return Padding(
        padded / kept.numel(),
        float(shift.max()),
        float(ratios[ratios.abs().nan_to_num().argmax()].exp()),
        int((~kept).any(dim=1).sum()),
        by_mask,
    )


def _equal_neighbours(input: Tensor, var: Tensor) -> Tensor:
    """Whether the values of two positions are the same, (N, L - 1)."""
    near = (_ROUNDING * var.clamp(min=0).sqrt()).to(input.device, input.dtype)[:, None]
    return ((input[:, :, 1:] - input[:, :, :-1]).abs() <= near).all(dim=1)


def _looks_so(input: Tensor, var: Tensor, kept: Tensor) -> bool:
    """Whether the positions that are not kept are constant, and the others are not."""
    equal, excluded = _equal_neighbours(input, var), ~kept[:, 1:] & ~kept[:, :-1]
    constant, plateaus = int((equal & excluded).sum()), int((equal & ~excluded).sum())
    return constant > _CONSTANT * int(excluded.sum()) and plateaus <= _PLATEAUS * int((~excluded).sum())


def _constant_ends(input: Tensor, var: Tensor) -> Tensor:
    """How many positions at the end of each sample belong to a stretch that is constant, (N,); 0 where there is none.

    The very last positions may differ, where a convolution has seen its own padding with zeros: fewer than are equal.
    """
    equal = _equal_neighbours(input, var).flip(1)
    edge = equal.to(torch.int8).argmax(dim=1)  # how many differ before the stretch begins, from the end
    behind = torch.arange(equal.shape[1], device=input.device) >= edge[:, None]
    run = (equal | ~behind).to(torch.int64).cumprod(dim=1).sum(dim=1) - edge
    tails = torch.where(equal.any(dim=1) & (run > edge), edge + run + 1, torch.zeros_like(run))
    elsewhere = torch.arange(equal.shape[1], device=input.device) >= tails[:, None]
    plateaus = float((equal & elsewhere).sum()) > _PLATEAUS * float(elsewhere.sum())
    return torch.zeros_like(tails) if plateaus else tails
