"""Copies of a model: what may be rewritten while the model itself stays as it was."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from itertools import zip_longest
from typing import Any

import torch

from ..errors import SurgeryError

__all__ = ["copied", "shared"]


def shared(model: torch.nn.Module, others: Iterable[object] = ()) -> torch.nn.Module:
    """A module tree of its own, whose parameters and buffers are those of the model given.

    A module that stands at two places in the model stands at the same two in the copy.

    Args:
        model: Any module.
        others: What else it shares with the copy.

    Raises:
        SurgeryError: The model holds something that cannot be copied.
    """
    return _copied(model, [*model.parameters(), *model.buffers(), *others])


def copied(model: torch.nn.Module) -> torch.nn.Module:
    """A copy that shares nothing."""
    return _copied(model, [])


def _copied(model: torch.nn.Module, kept: Iterable[object]) -> torch.nn.Module:
    memo: dict[int, Any] = {id(each): each for each in kept}
    try:
        new = copy.deepcopy(model, memo)
    except Exception as error:
        raise SurgeryError(
            f"the model cannot be copied: copy.deepcopy raised {type(error).__name__}: {error}.",
            "give one that copy.deepcopy takes: without locks, open files or tensors that have a gradient function, as "
            "torch.nn.utils' weight_norm, spectral_norm and prune leave them (their remove functions end that), or a "
            "forward pass with gradients that keeps something on the model (run it under torch.no_grad() instead).",
        ) from error
    _check_tree(model, new)
    return new


def _check_tree(model: torch.nn.Module, new: torch.nn.Module) -> None:
    """A module may have a ``__deepcopy__`` of its own, and give itself, or less than itself."""
    theirs, ours = (list(each.named_modules(remove_duplicate=False)) for each in (model, new))
    for (path, module), (other, copied) in zip_longest(theirs, ours, fillvalue=("", None)):
        if path != other or copied is module or type(copied) is not type(module):
            raise SurgeryError(
                f"a copy of the model is not another like it: {path or other or 'the model itself'} is "
                + ("the same module in both." if copied is module else "not in both, or of another class."),
                "some module's __deepcopy__ makes it so: do this to the modules inside it by themselves.",
            )
