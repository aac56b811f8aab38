"""The model in evaluation mode for a while, without gradients, hooks on its norms; afterwards as it was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from .target import Target

__all__ = ["Evaluating", "Hook"]

Hook = Callable[[Target, tuple[Any, ...], dict[str, Any]], None]


class Evaluating:
    """Evaluation mode everywhere, no gradients, hooks on the layers whose statistics change.

    No context manager: an interrupt between its ``__enter__`` and the block would find nobody to undo it. Instead::

        try:
            evaluating.start()
            ...
            evaluating.leave()
        except BaseException:
            evaluating.undo()
            raise

    Flags are set one by one, not by ``eval()``: a module may do more there than change its flag, or refuse.

    Args:
        model: The model.
        targets: Its layers whose statistics change.

    Attributes:
        hook: What is called before each of these layers is.
    """

    def __init__(self, model: torch.nn.Module, targets: Sequence[Target]) -> None:
        self._flags = [(module, module.training) for module in model.modules()]
        self._gradients = torch.is_grad_enabled()
        self._targets = targets
        self._hooks = [self._calls(target) for target in targets]
        self.hook: Hook | None = None

    def start(self) -> None:
        """Evaluation mode; the hooks are there."""
        torch.set_grad_enabled(False)
        for module, _ in self._flags:
            module.training = False
        for target, hook in zip(self._targets, self._hooks, strict=True):
            # Behind the hooks that are there: they may change the input.
            target.layer.register_forward_pre_hook(hook, with_kwargs=True)

    def leave(self) -> None:
        """All but the statistics as it was; also twice, and after a part of :meth:`start`."""
        for target, hook in zip(self._targets, self._hooks, strict=True):
            hooks = target.layer._forward_pre_hooks
            # By the hook and not by its handle, which an interrupt may have kept from us.
            for key in [key for key, each in hooks.items() if each is hook]:
                target.layer._forward_pre_hooks_with_kwargs.pop(key, None)
                del hooks[key]
        for module, training in self._flags:
            module.training = training
        torch.set_grad_enabled(self._gradients)

    def undo(self) -> None:
        """All as it was, the statistics too."""
        try:
            self._undo()
        except BaseException:
            self._undo()  # interrupted here: the whole of it again
            raise

    def _undo(self) -> None:
        self.leave()
        with torch.no_grad():
            for target in self._targets:
                target.restore()

    def _calls(self, target: Target) -> Callable[..., None]:
        def before(module: torch.nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            if self.hook is not None:
                self.hook(target, arguments, keywords)

        return before
