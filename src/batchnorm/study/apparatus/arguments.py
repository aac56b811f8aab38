"""The input of a module's call, which a network may give by position or by keyword."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["input_of", "with_input"]


def input_of(given: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
    """The first argument by position, or else the keyword "input", or the first keyword; None where there is none."""
    return given[0] if given else named.get(_name(named))


def with_input(
    given: tuple[Any, ...], named: Mapping[str, Any], change: Callable[[Any], Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with this done to the input; as they are where there is none."""
    if given:
        return (change(given[0]), *given[1:]), dict(named)
    return given, {name: change(value) if name == _name(named) else value for name, value in named.items()}


def _name(named: Mapping[str, Any]) -> str:
    # "input" is what torch's modules and ours call it; a class derived from one may call it otherwise.
    return "input" if "input" in named else next(iter(named), "")
