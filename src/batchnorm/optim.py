"""Weight decay for the weights, none for gamma and beta: ``parameter_groups`` and ``without_decay``."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch.nn.modules.batchnorm import _NormBase

from .errors import ArgumentError

__all__ = ["parameter_groups", "without_decay"]

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
    without = undecayed(model, decay_biases)
    groups: list[dict[str, Any]] = [
        {"params": [], "weight_decay": weight_decay},
        {"params": [], "weight_decay": 0.0},
    ]
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups[id(parameter) in without]["params"].append(parameter)
    return [group for group in groups if group["params"]]


def without_decay(optimizer: torch.optim.Optimizer, model: torch.nn.Module, *, decay_biases: bool = True) -> None:
    """Takes the weight decay from gamma and beta of a model's norms in an optimizer that is there, in place.

    Of each group with weight decay, those parameters that :func:`parameter_groups` leaves without move to a group of
    their own, with the group's other options and ``weight_decay=0``; a group of nothing else only loses its decay. All
    else stays: the state (momentum, averages), the order of the rest, parameters of other models.

    A learning rate scheduler holds one rate for each group that it has found: make it anew afterwards (of a group that
    is split under a scheduler a warning says so). A checkpoint of the optimizer from before has fewer groups, and does
    not load.

    Args:
        optimizer: Over the model's parameters, and others.
        model: Its norms count.
        decay_biases: As for :func:`parameter_groups`.

    Raises:
        ArgumentError: The optimizer has none of the model's parameters.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
        >>> without_decay(optimizer, model)
        >>> [(len(group["params"]), group["weight_decay"], group["momentum"]) for group in optimizer.param_groups]
        [(2, 0.0001, 0.9), (2, 0.0, 0.9)]
    """
    own = {id(parameter) for parameter in model.parameters()}
    if not any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"]):
        raise ArgumentError(
            f"this {type(optimizer).__name__} has none of the model's parameters.", "give the optimizer that trains it."
        )
    without = undecayed(model, decay_biases)
    for group in list(optimizer.param_groups):
        moves = [id(parameter) in without for parameter in group["params"]]
        if group.get("weight_decay") and any(moves):
            _split(optimizer, group, moves)


def undecayed(model: torch.nn.Module, decay_biases: bool = True) -> set[int]:
    """The identities of the parameters that get no weight decay."""
    return {
        id(parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if isinstance(module, _NORMS) or (name == "bias" and not decay_biases)
    }


def _split(optimizer: torch.optim.Optimizer, group: dict[str, Any], moves: list[bool]) -> None:
    if all(moves):
        group["weight_decay"] = 0.0
        return
    if "initial_lr" in group:
        warnings.warn(
            "a learning rate scheduler has been at this optimizer, and does not know the groups that it gets now: make "
            "the scheduler anew.",
            stacklevel=3,
        )
    without = {**group, "weight_decay": 0.0}
    rest: dict[str, Any] = {}
    for key in ("params", "param_names"):  # names where the optimizer was given named_parameters()
        if key in group:
            without[key] = [value for value, goes in zip(group[key], moves, strict=True) if goes]
            rest[key] = [value for value, goes in zip(group[key], moves, strict=True) if not goes]
    before: dict[str, Any] = {key: group[key] for key in rest}
    group.update(rest)  # first: a parameter is in one group only
    try:
        optimizer.add_param_group(without)
    except BaseException:
        group.update(before)
        raise
