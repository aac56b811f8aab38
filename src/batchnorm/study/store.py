"""Finished runs, one file each, so that a study that was interrupted goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import math
import time
from pathlib import Path
from typing import Any

from ..files import write_whole
from .claim import Result, Run, Value
from .fingerprint import Ingredients

__all__ = ["Store", "normal", "remove_leftovers"]

_HOUR = 3600.0


def remove_leftovers(folder: Path) -> None:
    """Removes what writes left that were killed; what is younger than an hour may belong to one that goes on."""
    for path in folder.rglob(".*.part"):
        if time.time() - path.stat().st_mtime > _HOUR:
            path.unlink(missing_ok=True)


class Store:
    """A folder of finished runs.

    A file holds the ingredients of its result in full, so it can be read by a person, and a result is handed out
    only for ingredients that are the same to the letter.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __str__(self) -> str:
        """The folder."""
        return str(self.folder)

    def _path(self, wanted: Ingredients) -> Path:
        digest = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()
        return self.folder / str(wanted["experiment"]) / f"{digest[:24]}.json"

    def get(self, wanted: Ingredients, run: Run) -> Result | None:
        """The kept result, or None where there is none; a file that cannot be read counts as none."""
        try:
            kept = json.loads(self._path(wanted).read_text("utf-8"))
            if kept["ingredients"] != wanted:
                return None
            return Result(run, _decoded(kept["values"]), float(kept["seconds"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def put(self, wanted: Ingredients, result: Result) -> None:
        """Keeps a result."""
        kept = {"ingredients": wanted, "seconds": result.seconds, "values": _encoded(result.values)}
        write_whole(self._path(wanted), json.dumps(kept, indent=1, ensure_ascii=False, allow_nan=False))


def normal(result: Result) -> Result:
    """The result as it comes back from a file, so that a kept one and a fresh one cannot differ.

    Raises:
        TypeError: If a value is none that JSON can hold.
    """
    return Result(result.run, _decoded(json.loads(json.dumps(_encoded(result.values)))), result.seconds)


# JSON has no NaN and no infinity: they are written as {"float": "nan"}.
def _encoded(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(float(value))}
    if isinstance(value, list | tuple):
        return [_encoded(item) for item in value]
    if hasattr(value, "items"):
        return {key: _encoded(item) for key, item in value.items()}
    return value


def _decoded(kept: dict[str, Any]) -> dict[str, Value]:
    def number(value: Any) -> Any:
        if isinstance(value, list):
            return [number(item) for item in value]
        return float(value["float"]) if isinstance(value, dict) else value

    return {name: number(value) for name, value in kept.items()}
