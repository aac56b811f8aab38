"""Who is told of each output of this library's norms, and of what it was computed from.

Observers belong to threads: what one thread watches is nothing to the others. While there are none, a forward pass
asks whether :data:`observers` is empty (5 ns), and no more. Recorded calls (:mod:`batchnorm.ops.recorded`) in a graph
or under a transform tell nobody.
"""

from __future__ import annotations

import threading
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor

from ..activation import Activation

__all__ = ["Observer", "observers", "tell"]


class Observer(Protocol):
    """What is called with each output.

    ``kernel.normalize(input, mean, var, weight, bias, residual, mask, eps, activation)`` computes the output again.
    ``recorded`` says whether autograd records the call, and so keeps the input for its backward pass; the output has
    no gradient function yet. None of the tensors is the observer's to keep alive.
    """

    def __call__(
        self,
        output: Tensor,
        recorded: bool,
        kernel: ModuleType,
        input: Tensor,
        mean: Tensor,
        var: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        mask: Tensor | None,
        eps: float,
        activation: Activation,
    ) -> None:
        """Take note of ``output``."""


# By thread. A plain dict: whether it is empty is asked at every call.
observers: dict[int, Observer] = {}


def tell(output: Tensor, recorded: bool, *layer: Any) -> None:
    """Tell this thread's observer, if it has one; see :class:`Observer`."""
    observer = observers.get(threading.get_ident())
    if observer is not None and (recorded or torch.is_grad_enabled()):
        observer(output, recorded, *layer)
