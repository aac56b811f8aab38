"""The model in evaluation mode for a while, hooks on its norms; afterwards, or after any failure, as it was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from .target import Target

__all__ = ["Evaluating", "Hook"]

Hook = Callable[[Target, tuple[Any, ...], dict[str, Any]], None]


class Evaluating:
    """Context manager: evaluation mode everywhere; on any exception the statistics are restored too.

    Flags are set one by one, not by ``eval()``: a module may do more there than change its flag, or refuse.

    Args:
        model: The model.
        targets: Its layers whose statistics change.

    Attributes:
        hook: What is called before each of these layers is.
    """

    def __init__(self, model: torch.nn.Module, targets: Sequence[Target]) -> None:
        self._flags = [(module, module.training) for module in model.modules()]
        self._targets = targets
        self._handles: list[RemovableHandle] = []
        self.hook: Hook | None = None

    def __enter__(self) -> Evaluating:
        """Evaluation mode; the hooks are there."""
        try:
            for module, _ in self._flags:
                module.training = False
            for target in self._targets:
                # Behind the hooks that are there: they may change the input.
                self._handles.append(target.layer.register_forward_pre_hook(self._calls(target), with_kwargs=True))
        except BaseException:
            self._restore(failed=True)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """As it was; the statistics too where there was an exception."""
        try:
            self._restore(failed=kind is not None)
        except BaseException:
            self._restore(failed=True)  # interrupted here: the whole of it again
            raise

    def _calls(self, target: Target) -> Callable[..., None]:
        def before(module: torch.nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            if self.hook is not None:
                self.hook(target, arguments, keywords)

        return before

    def _restore(self, failed: bool) -> None:
        for handle in self._handles:
            handle.remove()
        for module, training in self._flags:
            module.training = training
        if failed:
            for target in self._targets:
                target.restore()
