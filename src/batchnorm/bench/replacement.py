"""Ours in place of torch's norms in a copy of a model."""

from __future__ import annotations

import copy
from typing import Any

import torch

from .. import nn

__all__ = ["replaced"]

_KINDS: dict[type[torch.nn.Module], type[torch.nn.Module]] = {
    torch.nn.BatchNorm1d: nn.BatchNorm1d,
    torch.nn.BatchNorm2d: nn.BatchNorm2d,
    torch.nn.BatchNorm3d: nn.BatchNorm3d,
}


def replaced(module: torch.nn.Module) -> tuple[torch.nn.Module, int]:
    """A copy of a model with ours in place of torch's norms, and how many those were.

    Parameters are shared with the model given, buffers are copies. Only exact ``torch.nn.BatchNorm1d``, ``2d`` and
    ``3d`` are replaced: a subclass may compute something else, and what hooks see must stay as it is.

    Args:
        module: The model.
    """
    shared: dict[int, Any] = {id(parameter): parameter for parameter in module.parameters()}
    result = copy.deepcopy(module, shared)
    ours: dict[int, torch.nn.Module] = {}

    def change(layer: torch.nn.Module) -> torch.nn.Module:
        kind = _KINDS.get(type(layer))
        if kind is None or any(
            (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
        ):
            return layer
        if id(layer) not in ours:
            names = ("num_features", "eps", "momentum", "affine", "track_running_stats")
            new = kind(*(getattr(layer, name) for name in names), device="meta")
            new._parameters, new._buffers = layer._parameters, layer._buffers
            ours[id(layer)] = new.train(layer.training)
        return ours[id(layer)]

    for parent in list(result.modules()):
        for name, child in list(parent._modules.items()):  # named_children() leaves out what it has seen
            if child is not None:
                setattr(parent, name, change(child))
    return change(result), len(ours)
