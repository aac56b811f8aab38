"""What a forward pass computed from running statistics, for the recomputation of activation checkpointing.

By then they have moved. The recomputation gets the same batch, so it finds its first pass by the batch's moments: on
the device, since nothing may wait for it.
"""

from __future__ import annotations

from collections import deque
from typing import TypeAlias

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from ..ops.running import is_recomputation

__all__ = ["as_computed_first"]

# Passes of one layer between a first pass and its recomputation: micro-batches, steps of a recurrence.
_REMEMBERED = 16

# A batch computed anew has the same moments but for what rounds otherwise from run to run (atomic additions).
_SAME = 1e-3

_Key: TypeAlias = "tuple[StorageWeakRef, int]"
_Pass: TypeAlias = "tuple[Tensor, Tensor, Tensor, Tensor]"

# Mean, var, r and d of each pass, the last one first, by the memory of the running mean: in a backward pass that was
# compiled, the tensor is another.
_passes: dict[_Key, deque[_Pass]] = {}


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
    if torch._C._are_functorch_transforms_active() or torch.compiler.is_exporting():
        return r, d
    if torch.compiler.is_compiling():
        found: tuple[Tensor, Tensor] = torch.ops.batchnorm.as_computed_first(running_mean, mean, var, eps, r, d)
        return found
    return _first_or_now(running_mean, mean, var, eps, r, d)


def _first_or_now(
    running_mean: Tensor, mean: Tensor, var: Tensor, eps: float, r: Tensor, d: Tensor
) -> tuple[Tensor, Tensor]:
    again = is_recomputation()
    if not (again or _may_be_recomputed()):
        return r, d
    key = (StorageWeakRef(running_mean.untyped_storage()), int(running_mean.storage_offset()))
    if not again:
        _remember(key, (mean, var, r, d))
        return r, d
    remembered = [each for each in _passes.get(key, ()) if each[0].device == mean.device]
    if not remembered or mean.numel() == 0:
        return r, d
    means, variances, every_r, every_d = (torch.stack(each) for each in zip(*remembered, strict=True))  # (passes, C)
    away = _away(means, mean, (var + eps).sqrt()) + _away(variances, var, var + eps)  # (passes, C)
    away = away.amax(1)  # (passes,)
    nearest = away.argmin().view(1)  # of equals the last pass; an index without dimensions would wait for the device
    is_same = away.amin() < _SAME
    return (
        torch.where(is_same, every_r.index_select(0, nearest)[0], r),
        torch.where(is_same, every_d.index_select(0, nearest)[0], d),
    )


def _remember(key: _Key, found: _Pass) -> None:
    passes = _passes.get(key)
    if passes is None:
        for gone in [other for other in _passes if other[0].expired()]:
            del _passes[gone]
        passes = _passes[key] = deque(maxlen=_REMEMBERED)
    # Copies: compiled code takes memory that it no longer reads for what comes next.
    mean, var, r, d = found
    passes.appendleft((mean.clone(), var.clone(), r.clone(), d.clone()))


def _away(passes: Tensor, now: Tensor, scale: Tensor) -> Tensor:
    alike = (passes == now) | (passes.isnan() & now.isnan())
    return torch.where(alike, 0.0, ((passes - now).abs() / scale).nan_to_num(nan=torch.inf))


def _may_be_recomputed() -> bool:
    # A reentrant checkpoint runs its first pass without gradients, as compiled code runs, and any other under hooks for
    # what autograd keeps.
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
    r, d = _first_or_now(running_mean, mean, var, eps, r, d)
    return r.clone(), d.clone()  # no output may be an input


def _fake(running_mean: Tensor, mean: Tensor, var: Tensor, eps: float, r: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(r), torch.empty_like(d)


_LIBRARY.impl("as_computed_first", _operator, "CompositeExplicitAutograd")
torch.library.register_fake("batchnorm::as_computed_first", _fake, lib=_LIBRARY)
