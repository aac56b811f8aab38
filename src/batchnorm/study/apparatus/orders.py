"""Batch norm before or after an activation, in any network: the pairs of the two, found and exchanged."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..arms import norms
from ..error import StudyError
from .arguments import input_of

__all__ = ["ORDERS", "Neighbours", "neighbours", "ordered"]

#: Where batch norm stands: before the activation beside it, or after.
ORDERS = ("before", "after")

# Elementwise and the same for every channel, so that it can stand on either side of a norm. Not PReLU, which may have
# a slope a channel, nor softmax, which is none of these.
_ACTIVATIONS = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.ELU,
    nn.SELU,
    nn.CELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Sigmoid,
    nn.Tanh,
    nn.Softplus,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.Hardtanh,
)


@dataclass(frozen=True)
class Neighbours:
    """The pairs of a norm and an activation in a network, one of which gets the other's output.

    Args:
        order: Where the norms of the pairs stand: "before" or "after" their activations.
        pairs: Paths of norm and activation.
    """

    order: str
    pairs: tuple[tuple[str, str], ...]


def neighbours(model: nn.Module, images: Tensor) -> Neighbours:
    """Finds them by passing images: both are modules of their own, each called once, and nothing stands between.

    Where a network has pairs of both orders, those of the order that it has more of; the other ones are left.

    Raises:
        StudyError: If there is no such pair.
    """
    found = norms(model)
    active = {path: module for path, module in model.named_modules() if isinstance(module, _ACTIVATIONS)}
    calls: list[tuple[str, Any, Any]] = []
    with ExitStack() as hooks:
        for path, module in (found | active).items():
            # The objects are kept: an id alone could be that of another tensor by then.
            hook = module.register_forward_hook(
                lambda module, given, named, output, path=path: calls.append((path, input_of(given, named), output)),
                with_kwargs=True,
            )
            hooks.callback(hook.remove)
        before = model.training
        hooks.callback(model.train, before)
        with torch.no_grad():
            model.eval()(images)
    once = {path for path in found | active if [path for path, _, _ in calls].count(path) == 1} & _single(model)
    chains = []
    for place, (first, _, output) in enumerate(calls):
        # Only the next one: an activation in place hands on the same object, and what follows it would seem beside.
        second = next((path for path, given, _ in calls[place + 1 :] if given is output), None)
        if second is not None and {first, second} <= once:
            chains.append((first, second))
    by_order = {
        "before": tuple(pair for pair in chains if pair[0] in found and pair[1] in active),
        "after": tuple((norm, activation) for activation, norm in chains if norm in found and activation in active),
    }
    order = max(ORDERS, key=lambda order: len(by_order[order]))
    if not by_order[order]:
        raise StudyError(
            f"the network ({type(model).__name__}) has no batch norm with an activation directly beside it, both as "
            "modules that are called once.",
            "give each norm an activation module of its own (torch.nn.ReLU()), or leave this claim out",
        )
    return Neighbours(order, by_order[order])


def ordered(model: nn.Module, images: Tensor, order: str) -> nn.Module:
    """The model with its norms before or after the activations beside them; changed in place where they are not.

    Raises:
        StudyError: If no norm has an activation beside it.
    """
    beside = neighbours(model, images)
    if beside.order != order:
        for norm, activation in beside.pairs:
            first, second = model.get_submodule(norm), model.get_submodule(activation)
            _put(model, norm, second)
            _put(model, activation, first)
    return model


def _single(model: nn.Module) -> set[str]:
    """Paths of modules that stand at one place: one at two would have to be exchanged at both."""
    places: dict[int, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        places.setdefault(id(module), []).append(path)
    return {paths[0] for paths in places.values() if len(paths) == 1}


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    model.get_submodule(parent)._modules[name] = module
