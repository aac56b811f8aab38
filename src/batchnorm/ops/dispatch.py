"""Which kernel serves which tensor, and why."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from . import eager, native

__all__ = ["Backend", "backends", "explain", "kernels"]


@dataclass(frozen=True)
class Backend:
    """A set of kernels, and whether it serves this machine.

    Attributes:
        name: ``"native"`` (torch's own kernels) or ``"eager"`` (plain torch operations).
        available: Whether it can serve on this machine.
        serves: What it is used for.
        reason: Why it is available, or why not.
    """

    name: str
    available: bool
    serves: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {'yes' if self.available else 'no'} ({self.serves}; {self.reason})"


def kernels(input: Tensor, mask: Tensor | None, evaluation: bool = False) -> ModuleType:
    """The module whose functions serve this input; all have the signatures of :mod:`batchnorm.ops.eager`.

    Asked at every call, so the cheapest question comes first. With ``evaluation`` it is ``normalize`` that is meant,
    without it any other function, ``backward`` for evaluation included.
    """
    return native if evaluation or native.serves(input, mask) else eager


def explain(input: Tensor, mask: Tensor | None = None) -> str:
    """Which backend serves this input in training, and why, in one line.

    In evaluation torch's own kernels serve every input, masks included.

    Example:
        >>> explain(torch.randn(4, 3))
        "native: torch's own batch norm kernels serve input without a mask"
        >>> explain(torch.randn(4, 3), mask=torch.ones(4, dtype=torch.bool))
        'eager: a mask is given, and no other kernel takes statistics under one'
    """
    if kernels(input, mask) is native:
        return "native: torch's own batch norm kernels serve input without a mask"
    if mask is not None:
        return "eager: a mask is given, and no other kernel takes statistics under one"
    return "eager: fewer than two values a channel, which torch's kernels refuse"


def backends() -> tuple[Backend, ...]:
    """What serves this machine, and why; the first that can take an input does.

    Example:
        >>> for backend in backends():
        ...     print(backend)
        native: yes (evaluation, and training without a mask; torch ... brings it)
        eager: yes (everything else; plain torch operations run on every device)
    """
    return (
        Backend("native", True, "evaluation, and training without a mask", f"torch {torch.__version__} brings it"),
        Backend("eager", True, "everything else", "plain torch operations run on every device"),
    )
