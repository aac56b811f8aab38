"""What a rule has found: where, how bad, by which measurements, and how it is mended."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

__all__ = ["SEVERITIES", "Finding", "Fix", "Measurement", "Severity", "Subject"]

Severity: TypeAlias = Literal["info", "warning", "error"]

#: From the least to the worst.
SEVERITIES: tuple[Severity, ...] = ("info", "warning", "error")


@dataclass(frozen=True)
class Measurement:
    """One number behind a finding, and the threshold that it passed.

    Attributes:
        value: What was measured.
        threshold: Where the rule draws the line; None where the value stands beside another that has one.
        healthy: On which side of the threshold a healthy value lies.
        unit: Of both, such as ``"standard deviations"``; empty for counts and names.
    """

    value: float | int | str
    threshold: float | int | str | None = None
    healthy: Literal["at most", "at least", "equal to"] = "at most"
    unit: str = ""

    def __str__(self) -> str:
        value = f"{self.value:.3g}" if isinstance(self.value, float) else str(self.value)
        limit = self.threshold
        bound = f"{limit:.3g}" if isinstance(limit, float) else str(limit)
        words = f"{value} {self.unit}".rstrip()
        return words if limit is None else f"{words} (healthy: {self.healthy} {bound})"


@dataclass(frozen=True)
class Subject:
    """What a fix works on.

    Attributes:
        model: The model; None where only a checkpoint was given.
        state: Of a checkpoint, its tensors by their names, to be replaced in this dictionary; None beside a model.
        optimizer: The optimizer, where one was given.
        batches: The batches that the diagnosis was made with; None where there were none, or they are used up.
        forward: As given to :func:`batchnorm.diagnose`.
    """

    model: torch.nn.Module | None = None
    state: dict[str, Tensor] | None = None
    optimizer: torch.optim.Optimizer | None = None
    batches: Iterable[Any] | None = None
    forward: Callable[[torch.nn.Module, Any], object] | None = None


@dataclass(frozen=True)
class Fix:
    """A mend that can be made without asking: it loses nothing, and what it changes is said.

    Attributes:
        description: What it does, as a sentence without a period.
        apply: Does it, in place. It may raise: then everything is put back as it was.
        key: Fixes of several findings with the same key are one, and done once; None for one of its own.
    """

    description: str
    apply: Callable[[Subject], None] = field(compare=False, repr=False)
    key: str | None = None


@dataclass(frozen=True)
class Finding:
    """A mistake in a model.

    Attributes:
        rule: The rule's code, such as ``"BN001"``.
        name: The rule's name, such as ``"stale-statistics"``.
        layer: The path of the layer; empty where it is of the whole model, ``"(the model itself)"`` is shown then.
        severity: ``"error"``: results are wrong, or will be. ``"warning"``: they probably are. ``"info"``: nothing is
            wrong, and something could be better.
        message: What is wrong, in one sentence with the numbers.
        evidence: The measurements behind it, by name.
        mend: What to do, as one line of code.
        fix: A mend that :meth:`Diagnosis.fix` makes; None where none is safe.
    """

    rule: str
    name: str
    layer: str
    severity: Severity
    message: str
    evidence: Mapping[str, Measurement]
    mend: str
    fix: Fix | None = None

    def __str__(self) -> str:
        return f"{self.layer or '(the model itself)'}: {self.severity} {self.rule} {self.name}: {self.message}"
