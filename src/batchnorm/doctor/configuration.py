"""``[tool.batchnorm.doctor]`` of a ``pyproject.toml``: what ``batchnorm doctor`` need not be told each time."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import ArgumentError
from .checkpoint import SUFFIXES
from .finding import SEVERITIES, Severity
from .registry import matching

__all__ = ["Configuration", "find", "read"]

_TABLE = "tool.batchnorm.doctor"


@dataclass(frozen=True)
class Configuration:
    """What the table says; None where it says nothing. Each key is the option of that name, without its dashes.

    Attributes:
        path: The file; None where there is none.
        target: The model, as on the command line; and so are the following.
        batches: See there.
        loss: See there.
        optimizer: See there.
        forward: See there.
        before: See there.
        select: Codes of rules, their beginnings or names.
        ignore: Likewise.
        fail_on: The least severity of a finding that makes the command fail.
        max_batches: How many batches are run in each mode at most.
        accumulation_steps: Backward passes for each step of the optimizer.
        weights_from: The framework that the weights were trained in.
        per_layer_ignores: For patterns of layers' paths, what to ignore there.
    """

    path: Path | None = None
    target: str | None = None
    batches: str | None = None
    loss: str | None = None
    optimizer: str | None = None
    forward: str | None = None
    before: str | None = None
    select: tuple[str, ...] | None = None
    ignore: tuple[str, ...] | None = None
    fail_on: Severity | None = None
    max_batches: int | None = None
    accumulation_steps: int | None = None
    weights_from: str | None = None
    per_layer_ignores: Mapping[str, tuple[str, ...]] | None = None

    def over(self, other: Configuration) -> Configuration:
        """This one, and the other where it says nothing.

        Batches, loss, optimizer and so on belong to the other's target: beside another target they are not taken.
        """
        own = {each.name: value for each in fields(self) if (value := getattr(self, each.name)) is not None}
        lost = dict.fromkeys(_OF_TARGET) if self.target not in (None, other.target) else {}
        return replace(other, **{**lost, **own})


# What says nothing about any other model than the one that it stands beside.
_OF_TARGET = ("target", "batches", "loss", "optimizer", "forward", "before")


def find(folder: Path) -> Configuration:
    """Of the nearest ``pyproject.toml`` with such a table, in a folder or above it; an empty one where there is none.

    Raises:
        ArgumentError: As :func:`read`.
    """
    for each in (folder.absolute(), *folder.absolute().parents):
        path = each / "pyproject.toml"
        # Without the word there is no table: files of others are not even parsed.
        if path.is_file() and "batchnorm" in path.read_text(encoding="utf-8", errors="replace"):
            table = _table(path)
            if table is not None:
                return _configuration(table, path)
    return Configuration()


def read(path: Path) -> Configuration:
    """Of a file.

    Raises:
        ArgumentError: It has no such table; or a key of it is not known, or its value is of the wrong type.
        OSError: It cannot be read.
    """
    table = _table(path)
    if table is None:
        raise ArgumentError(f"{path} has no [{_TABLE}].", "add that table, or name another file.")
    return _configuration(table, path)


def _table(path: Path) -> Mapping[str, Any] | None:
    reader = _reader(path)
    try:
        content = reader.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of TOML, and of text
        raise ArgumentError(f"{path} cannot be read: {error}.", "mend that line.") from error
    here: Any = content
    for place, key in enumerate(parts := _TABLE.split(".")):
        if key not in here:
            if place == len(parts) - 1 and here:
                name = next(iter(here))
                raise ArgumentError(f"{path}: [tool.batchnorm] has no key {name!r}.", f"the table is [{_TABLE}].")
            return None
        here = here[key]
        if not isinstance(here, dict):
            raise ArgumentError(f"{path}: {'.'.join(parts[: place + 1])} is no table.", f"the table is [{_TABLE}].")
    return here


def _reader(path: Path) -> ModuleType:
    for name in ("tomllib", "tomli"):
        if importlib.util.find_spec(name) is not None:
            return importlib.import_module(name)
    raise ArgumentError(f"{path} cannot be read: Python before 3.11 has no reader of TOML.", "pip install tomli")


def _configuration(table: Mapping[str, Any], path: Path) -> Configuration:
    known = [each.name.replace("_", "-") for each in fields(Configuration) if each.name != "path"]
    values: dict[str, Any] = {"path": path}
    for key, value in table.items():
        where = f"{path}: [{_TABLE}] {key}"
        if key not in known:
            near = difflib.get_close_matches(key.replace("_", "-"), known, n=1)
            mend = f"did you mean {near[0]}? " if near else ""
            raise ArgumentError(f"{where}: there is no such key.", f"{mend}The keys are {', '.join(known)}.")
        check = _CHECKS.get(key, _text)
        try:
            values[key.replace("-", "_")] = check(value)
        except ArgumentError as error:
            raise ArgumentError(f"{where}: {error.problem}", error.mend) from error
    target = values.get("target", "")
    if target.lower().endswith(SUFFIXES) and ":" not in target and path.absolute().parent != Path.cwd():
        values["target"] = os.path.relpath(path.absolute().parent / target)  # it lies where the table says so
    return Configuration(**values)


def _wrong(value: object, wanted: str) -> ArgumentError:
    return ArgumentError(f"{value!r} is not {wanted}.")


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise _wrong(value, "a text")
    return value


def _number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise _wrong(value, "a number from 1 on")
    return value


def _severity(value: object) -> str:
    if value not in SEVERITIES:
        raise _wrong(value, f"one of {', '.join(SEVERITIES)}")
    return str(value)


def _rules(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise _wrong(value, "a list of rules' codes or names")
    matching(value)  # refuses what means no rule
    return tuple(value)


def _selected(value: object) -> tuple[str, ...]:
    if value == []:
        raise ArgumentError("[] selects no rule.", "name some, or leave the key out for all.")
    return _rules(value)


def _by_layer(value: object) -> dict[str, tuple[str, ...]]:
    if not isinstance(value, dict):
        raise _wrong(value, "a table of layers' paths, each with a list of rules")
    return {pattern: _rules(codes) for pattern, codes in value.items()}


_CHECKS: dict[str, Callable[[object], object]] = {
    "select": _selected,
    "ignore": _rules,
    "fail-on": _severity,
    "max-batches": _number,
    "accumulation-steps": _number,
    "per-layer-ignores": _by_layer,
}
