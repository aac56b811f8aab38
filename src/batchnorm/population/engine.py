"""What ``recalibrate`` and ``adapt`` share: statistics taken anew over batches, whole or not at all."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any, Literal, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parameter import is_lazy

from ..errors import ArgumentError
from .batches import Batches, Forward
from .evaluating import Evaluating
from .layers import named, norms_with_statistics, tracked_norms, why_frozen
from .passes import Blend, NonfiniteError, Seen, layer_by_layer, one_pass
from .progress import Line, Progress, report
from .ranks import Ranks
from .result import Recalibration
from .target import Target

__all__ = ["Order", "not_compiled", "retake", "unwrapped"]

Order: TypeAlias = Literal["one-pass", "layer-by-layer"]
_ORDERS = {"one-pass": one_pass, "layer-by-layer": layer_by_layer}


def retake(
    model: torch.nn.Module,
    batches: Iterable[Any] | Tensor,
    blend: Blend,
    *,
    max_samples: int | None,
    forward: Forward | None,
    process_group: dist.ProcessGroup | None,
    order: Order,
    progress: Progress,
    tool: str,
    keeps_count: bool = False,
    needs_samples: bool = False,
) -> Recalibration:
    """Takes the statistics of all tracked norms over the batches, and writes what ``blend`` makes of them.

    ``blend`` gives what to normalise by, from the layer, its pool and the number of samples; ``tool``: its name;
    ``keeps_count``: ``num_batches_tracked`` stays; ``needs_samples``: they must be countable. The rest is as the
    public functions say.
    """
    ranks = Ranks(process_group, model)
    prepared: list[tuple[torch.nn.Module, Batches, list[Target]]] = []

    def prepare() -> Tensor:
        prepared.append(_prepared(model, batches, max_samples, forward, order))
        return torch.zeros(1, device="cpu")

    ranks.together(1, prepare)
    inner, feed, targets = prepared[0]
    ranks.agree("the model", [order, *((target.path, target.mean.numel()) for target in targets)])
    said = report(progress, tool, ranks.rank)
    evaluating = Evaluating(inner, targets)
    results: list[Recalibration] = []
    try:
        with not_compiled():
            evaluating.start()
            seen = _ORDERS[order](inner, targets, feed, ranks, evaluating, said, blend)
            evaluating.hook = None
            if isinstance(said, Line):
                said.end()
            _check(targets, seen, needs_samples)

            def finish() -> Tensor:
                _warn(targets, seen)  # which may raise, so before anything is kept
                results.append(_written(targets, seen, blend, order, keeps_count))
                return torch.zeros(1, device="cpu")

            ranks.together(1, finish)  # so that none keeps what another could not write
            evaluating.leave()
            return results[0]
    except BaseException:
        evaluating.undo()
        raise


def unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    """The module inside ``DistributedDataParallel``, ``DataParallel`` and ``torch.compile``.

    Their forward passes broadcast buffers, copy the module, or run what was compiled without our hooks.
    """
    while True:
        if isinstance(model, torch.nn.parallel.DistributedDataParallel | torch.nn.DataParallel):
            model = model.module
        elif "_orig_mod" in model._modules:
            model = model.get_submodule("_orig_mod")
        else:
            return model


def not_compiled() -> Any:
    """A context in which compiled code runs as it was written."""
    # Else code is compiled again for the hooks, or runs without them. Where none was, nothing is imported for it.
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def _prepared(
    model: torch.nn.Module,
    batches: Iterable[Any] | Tensor,
    max_samples: int | None,
    forward: Forward | None,
    order: Order,
) -> tuple[torch.nn.Module, Batches, list[Target]]:
    if order not in _ORDERS:
        raise ArgumentError(f"order is {order!r}.", f"give one of {', '.join(map(repr, _ORDERS))}.")
    feed = Batches(batches, max_samples, forward)
    if order == "layer-by-layer" and not feed.again:
        raise ArgumentError(
            f"batches is a {type(batches).__name__}, which can be iterated once; this order takes a pass a layer.",
            'give a list or a loader, or take order="one-pass".',
        )
    model = unwrapped(model)
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ArgumentError(
                f"{named(path, module)} is scripted, and its norms cannot be watched.",
                "do this before torch.jit.script or trace.",
            )
    found = norms_with_statistics(model)
    for path, layer in found:
        mean = layer.running_mean
        if mean is not None and (is_lazy(mean) or mean.device.type == "meta"):
            raise ArgumentError(f"{named(path, layer)} has no values yet.", "run the model once, or load its weights.")
    targets = [Target(path, layer) for path, layer in tracked_norms(model) if layer.num_features]
    if not targets:
        reasons = why_frozen(model)
        raise ArgumentError(
            "the model has no batch norm whose statistics could be taken anew"
            + (f": all {len(found)} are frozen ({'; '.join(reasons)})." if reasons else "."),
            f"{', '.join(reasons.values())}." if reasons else "is this the right model?",
        )
    return model, feed, targets


def _check(targets: list[Target], seen: Seen, needs_samples: bool) -> None:
    if seen.batches == 0:
        raise ArgumentError("batches is empty.", "an iterator that was used up before gives nothing: make a new one.")
    if needs_samples and seen.samples is None:
        raise ArgumentError(
            "the samples of these batches cannot be counted, and their number weighs against the prior.",
            "give batches of tensors, pairs or dicts, or prior=0.",
        )
    if not any(int(pool.count) for pool in seen.pools):
        raise ArgumentError(
            f"no batch reached any of {', '.join(target.name for target in targets)}.",
            "is this the model that forward= calls?",
        )
    for target, pool in zip(targets, seen.pools, strict=True):
        if int(pool.count) == 1:
            raise ArgumentError(
                f"{target.name} was given 1 value a channel, which has no variance.", "give more samples."
            )


def _warn(targets: list[Target], seen: Seen) -> None:
    unreached = [target.path for target, pool in zip(targets, seen.pools, strict=True) if not int(pool.count)]
    if unreached:
        warnings.warn(
            f"no batch reached {', '.join(unreached)}: kept as they were. (A head that is only used in training is "
            "such a layer.)",
            stacklevel=6,
        )


def _written(targets: list[Target], seen: Seen, blend: Blend, order: Order, keeps_count: bool) -> Recalibration:
    moved, unreached = [], []
    for target, pool in zip(targets, seen.pools, strict=True):
        values = int(pool.count)
        if not values:
            target.restore()
            unreached.append(target.path)
            continue
        target.write(*blend(target, pool, seen.samples))
        if not target.finite():
            raise NonfiniteError(
                f"the statistics of {target.name} are too large for its buffers' {target.mean.dtype}.",
                "convert the layer: .float(); the model is as it was.",
            )
        if not keeps_count:
            target.count(pool.calls)
        moved.append(target.moved(values))
    return Recalibration(tuple(moved), tuple(unreached), seen.batches, seen.samples, order, seen.passes)
