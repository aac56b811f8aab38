"""What the targets of a command line name: modules, and what belongs to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from ..surgery.example import said
from ..targets import TargetError, resolve

__all__ = ["again_and_again", "function", "model_and", "optimizer_of", "value"]

_CALLABLE = "name a callable without arguments."


def value(target: str, kind: type | tuple[type, ...]) -> Any:
    """What a target names; where that can be called and is not of the kind that is looked for, what it returns."""
    found = resolve(target)
    return found if isinstance(found, kind) or not callable(found) else _called(found, target, _CALLABLE)


def _called(found: Callable[..., Any], target: str, mend: str, *arguments: object) -> Any:
    try:
        return found(*arguments)
    except (Exception, SystemExit) as error:  # which would end the command with an exit code of its own, 0 perhaps
        raise TargetError(f"{target}: calling it raised {said(error)}.", mend) from error


def model_and(target: str, what: str, most: int = 1, *, programs: bool = False) -> tuple[torch.nn.Module, list[Any]]:
    """The module that a target names, and what comes with it.

    Args:
        target: A module; or a callable without arguments that returns one, alone or as the first of a tuple.
        what: The others in the tuple, for messages.
        most: How many there may be.
        programs: Whether a program of ``torch.export`` will do, whose module is taken.

    Raises:
        TargetError: It is something else.
    """
    found = value(target, (torch.nn.Module, torch.export.ExportedProgram))
    model, *others = found if isinstance(found, tuple) and found else (found,)
    if programs and isinstance(model, torch.export.ExportedProgram):
        model = model.module(check_guards=False)
    if not isinstance(model, torch.nn.Module) or len(others) > most:
        words = ", ".join(type(part).__name__ for part in (model, *others))
        mend = f"name a module, or a callable without arguments that returns a module or (module, {what})."
        raise TargetError(f"{target} gives {words}.", mend)
    return model, others


def again_and_again(target: str) -> Any:
    """Batches: what a target names or returns; where that is an iterator, it is called anew for each pass."""
    found = value(target, torch.Tensor)
    again = resolve(target)
    return _Passes(found, again, target) if isinstance(found, Iterator) and found is not again else found


class _Passes:
    def __init__(self, first: Iterator[Any], again: Callable[[], Iterator[Any]], target: str) -> None:
        self._first: Iterator[Any] | None = first
        self._again, self._target = again, target

    def __iter__(self) -> Iterator[Any]:
        first, self._first = self._first, None
        return _called(self._again, self._target, _CALLABLE) if first is None else first


def function(target: str) -> Callable[..., Any]:
    """A function: what a target names, and of a class, what it gives without arguments."""
    found = resolve(target)
    if isinstance(found, type):
        found = _called(found, target, "name a function, or a class that is made without arguments.")
    if not callable(found):
        raise TargetError(f"{target} is a {type(found).__name__}, which cannot be called.", "name a function.")
    return found


def optimizer_of(target: str, model: torch.nn.Module) -> torch.optim.Optimizer:
    """The optimizer of a model: what a target names, or returns when it is called with the model.

    A class of optimizers is called with the model's parameters.

    Raises:
        TargetError: It is no optimizer, or that of another model.
    """
    found = resolve(target)
    mend = "name a callable that takes the model and returns its optimizer."
    if isinstance(found, type) and issubclass(found, torch.optim.Optimizer):
        found = _called(found, target, mend, model.parameters())
    elif callable(found):
        found = _called(found, target, mend, model)
    if not isinstance(found, torch.optim.Optimizer):
        raise TargetError(f"{target} gives a {type(found).__name__}, which is no torch.optim.Optimizer.", mend)
    own = {id(parameter) for parameter in model.parameters()}
    if not any(id(parameter) in own for group in found.param_groups for parameter in group["params"]):
        raise TargetError(f"{target} gives an optimizer that has no parameter of the model.", mend)
    return found
