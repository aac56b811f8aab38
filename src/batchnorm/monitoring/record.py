"""What is handed on of one observed training step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Record", "Trouble"]


@dataclass(frozen=True)
class Trouble:
    """A value beyond its threshold.

    Attributes:
        step: When.
        layer: The path of the norm.
        rule: The code of the doctor's rule that looks deeper (``batchnorm explain CODE``); empty where there is none.
        name: What it is; of a rule, its name.
        message: The same in a sentence, with the numbers.
        value: What was measured.
        threshold: The largest value that passes.
    """

    step: int
    layer: str
    rule: str
    name: str
    message: str
    value: float
    threshold: float

    def __str__(self) -> str:
        words = f"{self.rule} {self.name}".strip()
        return f"step {self.step}, {self.layer}: {words}: {self.message}"


@dataclass(frozen=True, eq=False)
class Record:
    """One observed step.

    What a layer has no value for is left out: drift without running statistics (or before they first moved), gradients
    where none came back before the record was made.

    Attributes:
        step: Its number, from 0.
        layers: For each norm that was called, by path in the order of calls, its values by name.
        gamma: For each of these that has one, by path, (C,) float64.
        beta: Likewise.
        summary: Of the whole network: by the same names the worst of all layers, or the share of all channels.
        worst: For each value of the summary that is of one layer, the path of that layer.
        troubles: What is beyond a threshold in this step.
    """

    step: int
    layers: Mapping[str, Mapping[str, float]]
    gamma: Mapping[str, np.ndarray[Any, Any]]
    beta: Mapping[str, np.ndarray[Any, Any]]
    summary: Mapping[str, float]
    worst: Mapping[str, str]
    troubles: tuple[Trouble, ...]
