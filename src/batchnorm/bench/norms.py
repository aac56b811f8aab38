"""What became of a model's norms, and how far off the model is, in few words."""

from __future__ import annotations

import re
from collections import Counter

from ..surgery.result import Surgery
from .contenders import FUSE, LEAN
from .row import Row

__all__ = ["counts", "difference", "reasons"]

# Where in the model a layer or an operator stands, which is another place for every norm.
_PLACES = ((re.compile(r"[\w.]+ \((\w[\w.]*)\)"), r"\1"), (re.compile(r"(aten\.\w+) in [\w.]+"), r"\1"))


def counts(surgery: Surgery) -> dict[str, int]:
    """How many norms were fused, replaced, folded and kept."""
    found = Counter(outcome.action for outcome in (*surgery.changed, *surgery.kept))
    return {action: found[action] for action in ("fused", "replaced", "folded", "kept")}


def reasons(surgery: Surgery) -> list[str]:
    """One line for each thing that was done with norms, and why: how many there were, not which.

    Example:
        >>> import torch
        >>> from batchnorm.surgery.fuse import fuse
        >>> layers = [(torch.nn.Conv2d(3, 3, 1), torch.nn.BatchNorm2d(3), torch.nn.ReLU()) for _ in range(3)]
        >>> model = torch.nn.Sequential(*(layer for group in layers for layer in group), torch.nn.BatchNorm2d(3))
        >>> reasons(fuse(model, torch.randn(4, 3, 8, 8)))
        ['3 fused: relu', '1 replaced: its output leaves the model']
    """
    found = Counter(f"{each.action}: {_without_places(each.detail)}" for each in (*surgery.changed, *surgery.kept))
    return [f"{times} {what}" for what, times in found.most_common()]


def difference(row: Row) -> str:
    """How far a rewritten model is off, as words; empty for a row that does not say."""
    if row.max_error is None:
        return ""
    double = "" if row.max_error_float64 is None else f"{row.max_error_float64:.1e} in float64, "
    other = f"the gradients of {FUSE}" if row.contender == LEAN else "the model as given"
    own = f"{row.max_error:.1e}" if row.max_error else "0"
    return f"largest relative difference from {other}: {double}{own}{' in its own dtype' if double else ''}"


def _without_places(detail: str) -> str:
    for place, kind in _PLACES:
        detail = place.sub(kind, detail)
    return detail
