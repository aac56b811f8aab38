"""What a model gives: tensors, wherever they are in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

__all__ = ["projected", "target_of", "tensors_in"]


def tensors_in(output: object) -> list[Tensor]:
    """The tensors in dictionaries, lists, tuples and data classes, in order.

    Example:
        >>> tensors_in({"logits": torch.tensor(1.0), "states": (torch.tensor(2.0), None)})
        [tensor(1.), tensor(2.)]
    """
    return [each for each in tree_leaves(_plain(output)) if isinstance(each, Tensor)]


def _plain(output: object) -> object:
    """With dictionaries, lists and tuples in place of classes that torch does not look into."""
    if isinstance(output, Mapping):
        return {key: _plain(value) for key, value in output.items()}
    if isinstance(output, list | tuple):
        return [_plain(value) for value in output]
    if is_dataclass(output) and not isinstance(output, type):
        return {key: _plain(value) for key, value in vars(output).items()}
    return output


def target_of(batch: Any) -> tuple[tuple[int, ...], torch.dtype] | None:
    """The shape and type of a batch's target; None where it has none that is a tensor.

    Example:
        >>> target_of((torch.zeros(2, 3), torch.tensor([0, 1]))), target_of({"values": torch.zeros(2)})
        (((2,), torch.int64), None)
    """
    target = None
    if isinstance(batch, Mapping):
        named = [value for name, value in batch.items() if "label" in str(name) or "target" in str(name)]
        target = named[0] if named else None
    elif isinstance(batch, list | tuple) and len(batch) > 1:
        target = batch[1]
    return (tuple(target.shape), target.dtype) if isinstance(target, Tensor) else None


def projected(tensor: Tensor) -> Tensor:
    """Its sum along random directions, the same from run to run, for each sample."""
    directions = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0), device="cpu").to(tensor)
    return (tensor * directions).sum() / max(tensor.shape[0] if tensor.dim() else 1, 1)
