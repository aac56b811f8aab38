"""Bytes that a forward pass keeps for the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ..memory import Storages

__all__ = ["bytes_kept"]


def bytes_kept(forward: Callable[[], object], excluded: Iterable[Tensor] = ()) -> int:
    """The bytes of all storages that autograd keeps, each counted once.

    What something else keeps alive as well is counted too: the input of a norm, for example, which autograd holds on
    to after the layer before it has let it go.

    Args:
        forward: Runs the forward pass.
        excluded: Tensors that are there anyway, such as parameters and buffers.

    Example:
        >>> x = torch.randn(4, 8, requires_grad=True)
        >>> bytes_kept(lambda: x.exp())  # keeps its output: 32 numbers of 4 bytes
        128
    """
    kept = Storages(excluded)

    def pack(tensor: Tensor) -> Tensor:
        kept.add(tensor)
        return tensor

    def unpack(value: Any) -> Any:
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        forward()
    return kept.bytes
