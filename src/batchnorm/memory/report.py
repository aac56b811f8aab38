"""How many bytes autograd keeps, with and without ``lean``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

__all__ = ["Report", "Storages"]

NOTHING_SEEN = "no norm of this library ran where autograd recorded it (a compiled graph is out of sight)"


class Storages:
    """How many bytes distinct storages have: each counts once, however many tensors share it.

    Args:
        excluded: Tensors whose storages do not count.

    Example:
        >>> import torch
        >>> storages, x = Storages(), torch.zeros(8)
        >>> [storages.add(tensor) for tensor in (x, x[:2], x.clone())]
        [True, False, True]
        >>> storages.bytes
        64
    """

    def __init__(self, excluded: Iterable[Tensor] = ()) -> None:
        self.bytes = 0
        self._seen: dict[int, StorageWeakRef] = {}
        for tensor in excluded:
            self.add(tensor)
        self.bytes = 0

    def add(self, tensor: Tensor) -> bool:
        """Count the storage of ``tensor``; whether it is one more."""
        storage = tensor.untyped_storage()
        if storage._cdata in self._seen:
            return False
        # Once freed it counts all the same; its place is what the reference keeps from being taken by another.
        self._seen[storage._cdata] = StorageWeakRef(storage)
        self.bytes += storage.nbytes()
        return True


@dataclass
class Report:
    """What autograd keeps of the forward passes inside a :func:`lean`; complete when the block ends.

    Attributes:
        kept_bytes: What it keeps: the storages of all tensors, each counted once. Not counted are parameters and
            other leaves that require a gradient, which are there anyway.
        kept_bytes_without: What it would keep without ``lean``.
        recipes: How many outputs are computed again in the backward pass.
        reasons: Why others are not, or why nothing is, and how often.
    """

    kept_bytes: int = 0
    kept_bytes_without: int = 0
    recipes: int = 0
    reasons: dict[str, int] = field(default_factory=dict)

    def because(self, reason: str) -> None:
        """Count one reason more."""
        self.reasons[reason] = self.reasons.get(reason, 0) + 1

    def __str__(self) -> str:
        share = self.kept_bytes / self.kept_bytes_without if self.kept_bytes_without else 1.0
        line = (
            f"{_size(self.kept_bytes)} kept, {_size(self.kept_bytes_without)} without lean ({share:.2f}); "
            f"computed again: {self.recipes}"
        )
        reasons = "; ".join(f"{reason} ({times})" for reason, times in self.reasons.items())
        return f"{line}\nkept as it is: {reasons}" if reasons else line


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


class Counts:
    """What goes into one report."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.norms = 0
        self._kept, self._without = Storages(), Storages()

    def keep(self, tensor: Tensor, replaced: bool, reason: str) -> None:
        origin = tensor if tensor._base is None else tensor._base
        if origin.is_leaf and origin.requires_grad:
            return
        report = self.report
        if self._without.add(tensor):
            report.recipes += replaced
            if reason:
                report.because(reason)
        if not replaced:
            self._kept.add(tensor)
        report.kept_bytes, report.kept_bytes_without = self._kept.bytes, self._without.bytes

    def close(self) -> None:
        if not self.norms and not self.report.reasons:
            self.report.because(NOTHING_SEEN)
