"""Models with a mistake planted in them, and models that only look like it: what rules are tried on.

Each rule has a file in ``planted/`` with at least two functions under ``@planted`` and one under ``@healthy``.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import batchnorm
from batchnorm import Diagnosis

_FOLDER = Path(__file__).with_name("planted")


@dataclass
class Case:
    """A model and what it is diagnosed with.

    ``options`` are further keywords of ``batchnorm.diagnose``.
    """

    model: torch.nn.Module | Mapping[str, Tensor]
    batches: Any = None
    loss: Callable[[Any, Any], Tensor] | None = None
    optimizer: torch.optim.Optimizer | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def diagnose(self, **options: Any) -> Diagnosis:
        given = {"batches": self.batches, "loss": self.loss, "optimizer": self.optimizer, **self.options, **options}
        return batchnorm.diagnose(self.model, **given)


@dataclass(frozen=True)
class Plant:
    """A way to build a case, and where the rule must find what (nothing, of a healthy one).

    One of several ``ranks`` is built and diagnosed by each of so many processes (``test_ranks.py``).
    """

    rule: str
    name: str
    build: Callable[[], Case]
    layers: tuple[str, ...]
    healthy: bool
    ranks: int = 1

    def case(self) -> Case:
        torch.manual_seed(0)
        return self.build()

    def __str__(self) -> str:
        return f"{self.rule}-{self.name}"


_FOUND: list[Plant] = []


def planted(rule: str, *layers: str, ranks: int = 1) -> Callable[[Callable[[], Case]], Callable[[], Case]]:
    """The function builds a case in which the rule must find something at just these layers ("": the whole model)."""

    def register(build: Callable[[], Case]) -> Callable[[], Case]:
        _FOUND.append(Plant(rule, build.__name__, build, layers, healthy=False, ranks=ranks))
        return build

    return register


def healthy(rule: str, *, ranks: int = 1) -> Callable[[Callable[[], Case]], Callable[[], Case]]:
    """The function builds a case that looks like the mistake and is none: the rule must find nothing."""

    def register(build: Callable[[], Case]) -> Callable[[], Case]:
        _FOUND.append(Plant(rule, build.__name__, build, (), healthy=True, ranks=ranks))
        return build

    return register


@cache
def plants(ranks: int | None = 1, files: tuple[str, ...] | None = None) -> tuple[Plant, ...]:
    """Those for so many processes, by rule; None for all. Of these ``files`` in ``planted/``, or of all."""
    for name in files or [module.name for module in pkgutil.iter_modules([str(_FOLDER)])]:
        importlib.import_module(f"doctor.planted.{name}")
    chosen = [plant for plant in _FOUND if ranks in (None, plant.ranks)]
    return tuple(sorted(chosen, key=lambda plant: (plant.rule, plant.healthy)))
