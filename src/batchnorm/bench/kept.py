"""Bytes that a forward pass keeps for the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ["bytes_kept"]


def bytes_kept(forward: Callable[[], object], excluded: Iterable[Tensor] = ()) -> int:
    """The bytes of all storages that autograd keeps, each counted once.

    What something else keeps alive as well is counted too: the input of a norm, for example, which autograd holds on
    to after the layer before it has let it go.

    Args:
        forward: Runs the forward pass and returns what holds the graph.
        excluded: Tensors that are there anyway, such as parameters and buffers.

    Example:
        >>> x = torch.randn(4, 8, requires_grad=True)
        >>> bytes_kept(lambda: x.exp())  # keeps its output: 32 numbers of 4 bytes
        128
    """
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def unpack(value: Any) -> Any:
        return value

    # Held until the count is done: an address that was let go could come again.
    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        output = forward()
    for tensor in excluded:
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    total = sum(kept.values())
    del output
    return total
