"""What a function of the user's can change besides the model: the modules and tensors that it holds."""

from __future__ import annotations

import functools
import inspect
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor

__all__ = ["reached_by"]

# Steps from a function to what it holds: a list in an object in a closure is three. Without a limit the way led through
# a trainer into its data.
_DEEP = 4
# What holds more than so many things holds data.
_MANY = 1000
# Their functions hold nothing that a user trains.
_LIBRARIES = ("torch", "numpy", "builtins", "functools")


def reached_by(*functions: object) -> list[torch.nn.Module | Tensor]:
    """Modules that functions hold, and tensors that get gradients.

    These are looked for in the function itself where it is an object, in the object whose method it is, in what it
    closes over, its defaults, what ``functools.partial`` binds, the global names that it uses, and of these objects in
    attributes, lists, tuples, sets and dictionaries.

    Example:
        >>> discriminator = torch.nn.Linear(2, 1)
        >>> reached_by(lambda model, batch: discriminator(model(batch))) == [discriminator]
        True
    """
    found: list[torch.nn.Module | Tensor] = []
    waiting: deque[tuple[Any, int]] = deque((each, 0) for each in functions)
    seen: set[int] = set()
    while waiting:
        value, depth = waiting.popleft()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.nn.Module):
            found.append(value)
        elif isinstance(value, Tensor):
            if value.is_leaf and value.requires_grad:
                found.append(value)
        elif depth < _DEEP:
            waiting += [(each, depth + 1) for each in _held(value)]
    return found


def _held(value: Any) -> Iterator[Any]:
    if isinstance(value, type | ModuleType | BuiltinFunctionType | str | bytes | torch.utils.data.DataLoader):
        return
    if isinstance(value, MethodType):
        yield from (value.__self__, value.__func__)
    elif isinstance(value, FunctionType):
        yield from _of_function(value)
    elif isinstance(value, functools.partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, dict):
        yield from dict.values(value) if len(value) <= _MANY else ()
    elif isinstance(value, list | tuple | set | frozenset | deque):
        yield from value if len(value) <= _MANY else ()
    else:
        yield from getattr(value, "__dict__", {}).values()
        call = inspect.getattr_static(type(value), "__call__", None)
        if isinstance(call, FunctionType):
            yield call


def _of_function(function: FunctionType) -> Iterator[Any]:
    if (function.__module__ or "").partition(".")[0] in _LIBRARIES:
        return
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    yield getattr(function, "__wrapped__", None)
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # it has no value yet
            yield cell.cell_contents
    for name in _names(function.__code__):
        yield function.__globals__.get(name)


def _names(code: CodeType) -> Iterator[str]:
    """That a function uses, those of functions in it as well."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
