"""Which norms of a model have running statistics that move."""

from __future__ import annotations

import torch
from torch.nn.modules.batchnorm import _NormBase

from ..nn._base import is_batch_norm
from ..nn.frozen import Frozen

__all__ = ["is_frozen", "named", "norms_with_statistics", "tracked_norms"]


def tracked_norms(model: torch.nn.Module) -> list[tuple[str, _NormBase]]:
    """The paths and layers of a model's batch norms that track statistics and are not frozen, each layer once.

    Frozen is a layer of a frozen class, one in evaluation mode in a model that is training, and one whose momentum
    is 0. Instance norms are none: their statistics are of one sample.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2, track_running_stats=False))
        >>> [path for path, layer in tracked_norms(model)]
        ['0']
        >>> _ = model[0].eval()
        >>> tracked_norms(model)
        []
    """
    return [(path, layer) for path, layer in norms_with_statistics(model) if not is_frozen(layer, model)]


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


def is_frozen(layer: _NormBase, model: torch.nn.Module) -> bool:
    """Whether a layer of the model keeps its statistics while the model trains."""
    return isinstance(layer, Frozen) or (model.training and not layer.training) or layer.momentum == 0


def named(path: str, layer: torch.nn.Module) -> str:
    """A layer as a message names it: its path and class."""
    return f"{path} ({type(layer).__name__})" if path else type(layer).__name__
