"""What became of a model: the new one, what was changed and what was kept, and how far it is off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .proof import Errors

__all__ = ["Outcome", "Surgery"]


@dataclass(frozen=True)
class Outcome:
    """What became of one layer.

    Attributes:
        layer: Its path in the model.
        kind: Its class in the model given.
        action: ``"fused"``, ``"replaced"``, ``"folded"`` or ``"kept"``.
        detail: With what, or why.
    """

    layer: str
    kind: str
    action: str
    detail: str

    def __str__(self) -> str:
        return f"{self.layer or '(the model itself)'} ({self.kind}): {self.action}: {self.detail}"


@dataclass(frozen=True)
class Surgery:
    """A rewritten model.

    Attributes:
        model: The new module tree; the model given is as it was.
        changed: The layers that were changed, in the order of the model.
        kept: The layers that were not, with the reason.
        errors: How far the two are from each other on the example.
    """

    model: torch.nn.Module
    changed: Sequence[Outcome]
    kept: Sequence[Outcome]
    errors: Errors

    @property
    def max_error(self) -> float:
        """The largest difference in the model's own dtype; see :class:`Errors`."""
        return self.errors.largest

    def __str__(self) -> str:
        rows = [(each.layer or "(the model itself)", each.kind, each.action, each.detail) for each in self._in_order()]
        widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
        lines = [
            "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]).rstrip()
            for row in rows
        ]
        return "\n".join([*lines, f"{self._counts()}; largest relative difference on the example: {self.errors}"])

    def _in_order(self) -> list[Outcome]:
        return [*self.changed, *self.kept]

    def _counts(self) -> str:
        actions = [each.action for each in self._in_order()]
        return ", ".join(f"{actions.count(action)} {action}" for action in dict.fromkeys(actions)) or "no norms"
