"""Which norms of a model have running statistics that move."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn.modules.batchnorm import _NormBase

from ..nn._base import is_batch_norm
from ..nn.frozen import Frozen

__all__ = ["frozen_norms", "named", "norms_with_statistics", "tracked_norms", "why_frozen"]


def tracked_norms(model: torch.nn.Module) -> list[tuple[str, _NormBase]]:
    """The paths and layers of a model's batch norms that track statistics and are not frozen, each layer once.

    Frozen is a layer of a frozen class, one whose momentum is 0, and one in evaluation mode while something else of
    the model trains: another module with parameters, or with buffers and no module inside. The flags of what only
    holds other modules do not count: those of ``DistributedDataParallel``, ``AveragedModel`` and the like stay True
    around a model in evaluation mode. Instance norms are none: their statistics are of one sample.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2, track_running_stats=False))
        >>> [path for path, layer in tracked_norms(model)]
        ['0']
        >>> _ = model[0].eval()
        >>> tracked_norms(model)
        []
    """
    trains = _trains(model)
    return [(path, layer) for path, layer in norms_with_statistics(model) if _why(layer, trains) is None]


def why_frozen(model: torch.nn.Module) -> dict[str, str]:
    """Why norms of the model with statistics are frozen, and for each reason how that ends."""
    trains = _trains(model)
    reasons = (_why(layer, trains) for _, layer in norms_with_statistics(model))
    return {reason: _ENDED[reason] for reason in reasons if reason is not None}


def frozen_norms(model: torch.nn.Module) -> dict[str, str]:
    """Why norms of the model stay as they are whatever mode is asked of them, by path: those of which that is so."""
    reasons = ((path, _why(layer, False)) for path, layer in model.named_modules() if is_batch_norm(layer))
    return {path: reason for path, reason in reasons if reason is not None}


def norms_with_statistics(model: torch.nn.Module) -> list[tuple[str, _NormBase]]:
    """The paths and layers of a model's batch norms that have running statistics, frozen ones among them."""
    return [
        (path, layer)
        for path, layer in model.named_modules()
        if is_batch_norm(layer)
        and layer.track_running_stats
        and layer.running_mean is not None
        and layer.running_var is not None
    ]


_CLASS, _MOMENTUM, _MODE = "of a frozen class", "momentum 0", "in evaluation mode while the rest trains"
_ENDED = {
    _CLASS: "unfreeze(model) first",
    _MOMENTUM: "give the layers a momentum",
    _MODE: "put all in one mode first, with model.eval() or model.train()",
}


def _why(layer: _NormBase, trains: bool) -> str | None:
    if isinstance(layer, Frozen):
        return _CLASS
    if layer.momentum == 0:
        return _MOMENTUM
    return _MODE if trains and not layer.training else None


def _trains(model: torch.nn.Module) -> bool:
    """Whether something trains in the model, but for what only holds other modules."""
    return any(
        getattr(module, "training", False)  # a frozen module of TorchScript has none
        and (_some(module._parameters) or (_some(module._buffers) and not any(True for _ in module.children())))
        for module in model.modules()
    )


def _some(tensors: Mapping[str, torch.Tensor | None]) -> bool:
    return any(tensor is not None for tensor in tensors.values())


def named(path: str, layer: torch.nn.Module) -> str:
    """A layer as a message names it: its path and class."""
    return f"{path} ({type(layer).__name__})" if path else type(layer).__name__
