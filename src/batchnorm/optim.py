"""``parameter_groups``: weight decay for the weights, none for gamma and beta."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.modules.batchnorm import _NormBase

__all__ = ["parameter_groups"]

_NORMS = (_NormBase, torch.nn.LayerNorm, torch.nn.GroupNorm, torch.nn.RMSNorm)


def parameter_groups(model: torch.nn.Module, weight_decay: float, *, decay_biases: bool = True) -> list[dict[str, Any]]:
    """The model's trainable parameters as two groups for an optimizer: with weight decay, and without.

    Without decay are gamma and beta of every norm layer (batch, instance, layer, group, RMS). A weight before a batch
    norm can shrink without changing the function, so decay on it sets the effective learning rate; gamma and beta
    are the function, and decay pulls them to zero.

    Args:
        model: Any module. A parameter shared by several modules appears once; shared with a norm, without decay.
        weight_decay: For the first group.
        decay_biases: ``False`` also puts every other parameter named ``bias`` into the group without decay.

    Returns:
        Two groups, ``{"params": [...], "weight_decay": ...}``, in the order of ``model.parameters()``; a group
        without parameters is left out.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8))
        >>> [(len(group["params"]), group["weight_decay"]) for group in parameter_groups(model, 0.1)]
        [(2, 0.1), (2, 0.0)]
        >>> optimizer = torch.optim.SGD(parameter_groups(model, 0.1), lr=0.1)
    """
    without = {
        id(parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if isinstance(module, _NORMS) or (name == "bias" and not decay_biases)
    }
    groups: list[dict[str, Any]] = [
        {"params": [], "weight_decay": weight_decay},
        {"params": [], "weight_decay": 0.0},
    ]
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups[id(parameter) in without]["params"].append(parameter)
    return [group for group in groups if group["params"]]
