"""Steps that give on each value as it is, and where the channels are behind them.

Between a norm and its layer there may be dropout in evaluation, copies, and changes of shape that keep the channels as
one dimension. Dimensions are followed, not sizes: that a linear layer has as many features as its input has rows says
nothing.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from .graph import Call, Value, operator_name

__all__ = ["carried", "passed"]

_DROPOUTS = {f"aten.{name}" for name in ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")}
_COPIES = {f"aten.{name}" for name in ("contiguous", "clone", "detach", "alias", "to", "lift_fresh_copy")}
_RESHAPES = {
    f"aten.{name}"
    for name in ("view", "reshape", "flatten", "unflatten", "unsqueeze", "squeeze", "reshape_as", "view_as", "ravel")
}
_PERMUTES = {
    f"aten.{name}"
    for name in ("transpose", "swapaxes", "swapdims", "permute", "movedim", "moveaxis", "t", "mT", "numpy_T")
}


def passed(call: Call) -> tuple[Value, Value] | None:
    """What a call takes and gives on, each value as it is; None where it does more."""
    if len(call.steps) != 1 or len(call.reads) != 1 or len(call.gives) != 1:
        return None
    (target, args, named), taken, given = call.steps[0], call.reads[0], call.gives[0]
    name = operator_name(target)
    if name in _DROPOUTS:
        train = args[2] if len(args) > 2 else named.get("train", True)
        return None if train else (taken, given)
    if name not in _COPIES | _RESHAPES | _PERMUTES or call.writes:
        return None
    if not isinstance(taken.example, Tensor) or not isinstance(given.example, Tensor):
        return None
    same = taken.dtype == given.dtype and taken.example.device == given.example.device
    return (taken, given) if same else None


def carried(call: Call, dim: int, *, backward: bool) -> int | None:
    """Where a dimension is behind a call that :func:`passed` takes, or before it; None where it is mixed with others.

    Args:
        call: The step.
        dim: Of what it takes; with ``backward``, of what it gives.
        backward: Whether the dimension is looked for in what it takes.
    """
    taken, given = call.reads[0].shape, call.gives[0].shape
    name = operator_name(call.steps[0][0])
    if name in _DROPOUTS | _COPIES:
        return dim
    if not all(type(size) is int for size in (*taken, *given)):
        return None  # a size that depends on data
    if name in _RESHAPES:
        return _regrouped(given, taken, dim) if backward else _regrouped(taken, given, dim)
    order = _order(call, len(taken))
    return order[dim] if backward else order.index(dim)


def _regrouped(start: tuple[int, ...], end: tuple[int, ...], dim: int) -> int | None:
    """Where a dimension is after a change of shape: as many values lie behind it as did, and so as many before it.

    Example:
        >>> _regrouped((2, 5, 3), (10, 3), 2), _regrouped((2, 3, 4), (2, 12), 1)
        (1, None)
    """
    if 0 in start:
        return None
    for place, size in enumerate(end):
        if size == start[dim] and prod(end[place:]) == prod(start[dim:]):
            return place
    return None


def _order(call: Call, dims: int) -> list[int]:
    """The dimension of the input that each dimension of the output of a permutation is."""
    target, args, named = call.steps[0]
    # As the operator itself does it, on a tensor whose sizes tell its dimensions apart.
    moved = target(torch.empty([place + 2 for place in range(dims)], device="meta"), *args[1:], **named)
    return [size - 2 for size in moved.shape]
