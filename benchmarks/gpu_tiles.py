"""Choices of tiles for ``gpu.py --tune``: each is a contender beside the library with its table as it is.

Each changes one thing: the values or the warps of one kernel's tile, or one of the numbers beside the table.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from batchnorm.bench.cases import Case
from batchnorm.bench.environment import Environment
from batchnorm.bench.inputs import draw
from batchnorm.bench.peers import OURS, Contender, chosen
from batchnorm.bench.row import Row
from batchnorm.bench.run import measure
from batchnorm.ops.triton import passes, tiles

__all__ = ["Candidate", "candidates", "looked_up", "sweep"]

_VALUES = (0.25, 0.5, 2, 4)  # times what the table has
_WARPS = (2, 4, 8, 16)
_NUMBERS = {
    "_ROW_BYTES": (64, 256),
    "_SECTOR_BYTES": (64, 128),
    "_PROGRAMS": (264, 1056, 2112),
    "_MOST_STEPS": (2, 8),
    "_FEWEST_PROGRAMS": (132, 528),
}


@dataclass(frozen=True)
class Candidate:
    """This library's layers with something in :mod:`batchnorm.ops.triton.tiles` changed.

    Attributes:
        name: What is changed, and to what, such as ``normalize=4096x4`` (values and warps) or ``_PROGRAMS=1056``.
        changes: Attributes of that module, with their values.
    """

    name: str
    changes: dict[str, Any]

    def build(self, case: Case, device: str = "cpu") -> Contender:
        """Makes the layer; the change lasts as long as it works."""
        contender = OURS.build(case, device)
        contender.around = partial(_changed, self.changes, _plans())
        return contender


def _plans() -> Any:
    """Memory for what follows from the table: each candidate has its own, and fills it before it is timed."""
    return functools.lru_cache(None)(passes.Plan)


@contextmanager
def _changed(changes: dict[str, Any], plans: Any) -> Iterator[None]:
    before, remembered = {name: getattr(tiles, name) for name in changes}, passes.plan
    try:
        for name, value in changes.items():
            setattr(tiles, name, value)
        passes.plan = plans
        yield
    finally:
        passes.plan = remembered
        for name, value in before.items():
            setattr(tiles, name, value)


def candidates(kernels: Sequence[str], item: int) -> list[Candidate]:
    """What to try for kernels on values of ``item`` bytes.

    Args:
        kernels: By the names of the table.
        item: Bytes a value.
    """
    found = []
    for kernel in kernels:
        now = tiles.TILES[kernel][item]
        tried = [tiles.Tile(int(now.values * factor), now.warps) for factor in _VALUES]
        tried += [tiles.Tile(now.values, warps) for warps in _WARPS if warps != now.warps]
        for tile in tried:
            table = {**tiles.TILES, kernel: {**tiles.TILES[kernel], item: tile}}
            found.append(Candidate(f"{kernel}={tile.values}x{tile.warps}", {"TILES": table}))
    if kernels:
        for name, values in _NUMBERS.items():
            now = getattr(tiles, name)
            found += [Candidate(f"{name}={value}", {name: value}) for value in values if value != now]
    return found


class _Watched(dict[str, Any]):
    """The table; it remembers which kernels were looked up."""

    def __init__(self, table: Any) -> None:
        super().__init__(table)
        self.seen: dict[str, None] = {}

    def __getitem__(self, kernel: str) -> Any:
        self.seen[kernel] = None
        return super().__getitem__(kernel)


def looked_up(case: Case, device: str) -> list[str]:
    """The kernels whose tiles the library asks for in one step of a case."""
    watched = _Watched(tiles.TILES)
    with _changed({"TILES": watched}, _plans()):
        OURS.build(case, device).results(draw(case).to(device))
    return list(watched.seen)


def sweep(case: Case, rounds: int, environment: Environment) -> list[Row]:
    """The rows of a case: the library, eager torch, and every candidate; a ratio below 1 is a better choice."""
    kernels = looked_up(case, environment.device)
    peers = (*chosen([]), *candidates(kernels, case.item))
    return measure(case, peers, rounds, environment)
