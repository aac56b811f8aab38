"""A hook that stays with the model it was put into: copies and pickles of the model have one that does nothing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch

__all__ = ["Hook"]


class Hook:
    """Calls a function, but not while a compiler traces: compiled code has no trace of it.

    A copy or a pickle has, in its place, a method of Python's own that takes any arguments and does nothing: neither
    the writer goes along, nor does who loads it need this library.

    Example:
        >>> import copy
        >>> model = torch.nn.Identity()
        >>> _ = model.register_forward_pre_hook(Hook(lambda module, arguments: print("called")))
        >>> _ = model(1)
        called
        >>> _ = copy.deepcopy(model)(1)
    """

    def __init__(self, call: Callable[..., None]) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> None:
        """What torch calls."""
        if not torch.compiler.is_compiling():
            self._call(*arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (nullcontext(), "__exit__")
