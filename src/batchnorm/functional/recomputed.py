"""What a forward pass computed from running statistics, for the recomputation of activation checkpointing.

By then they have moved. The recomputation gets the same batch, so it finds its first pass by the batch's moments: on
the device, since nothing may wait for it. Of passes on equal batches it takes the last that was not yet recomputed:
recomputations run backwards.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from ..ops.running import is_recomputation

__all__ = ["as_computed_first"]

# Passes of one layer that wait for their recomputation: micro-batches, steps of a recurrence. Nobody knows of a pass in
# compiled code whether it will be recomputed; until one was, few are kept.
_WAITING, _WAITING_PERHAPS = 256, 16

# A batch computed anew has the same moments but for what rounds otherwise from run to run (atomic additions).
_SAME = 1e-3

_Key: TypeAlias = "tuple[StorageWeakRef, int]"


@dataclass
class _Passes:
    """The passes of one layer, the last one first.

    Attributes:
        kept: Mean, var, r and d of each, and whether it was recomputed, (1,) float32 on the device.
        recomputed: How many recomputations there were since the first of them.
        ever: Whether there ever was one.
    """

    kept: list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]] = field(default_factory=list)
    recomputed: int = 0
    ever: bool = False

    def add(self, found: tuple[Tensor, Tensor, Tensor, Tensor], sure: bool) -> None:
        """One more pass; where all before it have been recomputed, those are done with."""
        if self.recomputed >= len(self.kept):
            self.kept.clear()
            self.recomputed = 0
        # Copies: compiled code takes memory that it no longer reads for what comes next.
        mean, var, r, d = (each.clone() for each in found)
        self.kept.insert(0, (mean, var, r, d, mean.new_zeros(1, dtype=torch.float32)))
        del self.kept[_WAITING if sure or self.ever else _WAITING_PERHAPS :]

    def find(self, mean: Tensor, var: Tensor, eps: float, r: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        """R and d of the pass on the batch with these moments; those given where there is none."""
        self.recomputed, self.ever = self.recomputed + 1, True
        kept = [each for each in self.kept if each[0].device == mean.device]
        if not kept or mean.numel() == 0:
            return r, d
        means, variances, every_r, every_d, done = (torch.stack(each) for each in zip(*kept, strict=True))
        away = _away(means, mean, (var + eps).sqrt()) + _away(variances, var, var + eps)  # (passes, C)
        away = away.amax(1)  # (passes,)
        # One that was recomputed before comes last among equals, and may be asked for again (retain_graph). An index
        # without dimensions would wait for the device.
        nearest = (away + 10 * _SAME * done[:, 0]).argmin().view(1)
        is_same = away.index_select(0, nearest) < _SAME  # (1,)
        marks = torch.zeros_like(away).index_fill_(0, nearest, 1.0)
        for mark, each in zip(marks.unbind(), kept, strict=True):
            each[4].copy_(torch.maximum(each[4], mark.view(1)))
        return (
            torch.where(is_same, every_r.index_select(0, nearest)[0], r),
            torch.where(is_same, every_d.index_select(0, nearest)[0], d),
        )


# By the memory of the running mean: in a backward pass that was compiled, the tensor is another.
_passes: dict[_Key, _Passes] = {}


def as_computed_first(
    running_mean: Tensor, mean: Tensor, var: Tensor, eps: float, r: Tensor, d: Tensor
) -> tuple[Tensor, Tensor]:
    """``r`` and ``d``, or in a recomputation those that the first pass on this batch computed.

    Args:
        running_mean: What the layer's passes are remembered by, (C,).
        mean: The batch's, (C,).
        var: The batch's, (C,).
        eps: Added to variances.
        r: By the running statistics as they are now, (C,).
        d: By the running statistics as they are now, (C,).
    """
    # The flag itself: is_exporting() is True in whatever a compiler of torch 2.10 traces.
    if torch._C._are_functorch_transforms_active() or torch.compiler._is_exporting_flag:
        return r, d
    if torch.compiler.is_compiling():
        found: tuple[Tensor, Tensor] = torch.ops.batchnorm.as_computed_first(running_mean, mean, var, eps, r, d)
        return found
    sure = _may_be_recomputed()
    return _first_or_now(sure, running_mean, mean, var, eps, r, d) if sure or is_recomputation() else (r, d)


def _first_or_now(
    sure: bool, running_mean: Tensor, mean: Tensor, var: Tensor, eps: float, r: Tensor, d: Tensor
) -> tuple[Tensor, Tensor]:
    key = (StorageWeakRef(running_mean.untyped_storage()), int(running_mean.storage_offset()))
    if is_recomputation():
        return _passes[key].find(mean, var, eps, r, d) if key in _passes else (r, d)
    if key not in _passes:
        for gone in [other for other in _passes if other[0].expired()]:
            del _passes[gone]
    _passes.setdefault(key, _Passes()).add((mean, var, r, d), sure)
    return r, d


def _away(passes: Tensor, now: Tensor, scale: Tensor) -> Tensor:
    alike = (passes == now) | (passes.isnan() & now.isnan())
    return torch.where(alike, 0.0, ((passes - now).abs() / scale).nan_to_num(nan=torch.inf))


def _may_be_recomputed() -> bool:
    # A reentrant checkpoint runs its first pass without gradients, and any other under hooks for what autograd keeps.
    return not torch.is_grad_enabled() or torch._C._autograd._top_saved_tensors_default_hooks(False) is not None


# In a graph this is one operator, which asks when it runs.

_LIBRARY = torch.library.Library("batchnorm", "FRAGMENT")
_LIBRARY.define(
    "as_computed_first(Tensor running_mean, Tensor mean, Tensor var, float eps, Tensor r, Tensor d)"
    " -> (Tensor r, Tensor d)",
    tags=(torch.Tag.pt2_compliant_tag, torch.Tag.cudagraph_unsafe),
)


def _operator(
    running_mean: Tensor, mean: Tensor, var: Tensor, eps: float, r: Tensor, d: Tensor
) -> tuple[Tensor, Tensor]:
    r, d = _first_or_now(False, running_mean, mean, var, eps, r, d)
    return r.clone(), d.clone()  # no output may be an input


def _fake(running_mean: Tensor, mean: Tensor, var: Tensor, eps: float, r: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(r), torch.empty_like(d)


_LIBRARY.impl("as_computed_first", _operator, "CompositeExplicitAutograd")
torch.library.register_fake("batchnorm::as_computed_first", _fake, lib=_LIBRARY)
