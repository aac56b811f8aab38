"""Dropout among the layers of any network: beside its norms, after its activations, before its last linear layer."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...activation import IDENTITY
from ...nn._base import is_batch_norm
from ...surgery.kinds import activation_of
from .arguments import with_input

__all__ = ["PLACEMENTS", "places", "with_dropout"]

#: Where dropout stands in a network, each time but for the last placement, which is once.
PLACEMENTS = ("before norm", "after norm", "after activation", "before last")

# Of torch's modules for activations those that are none: they look at more than one value, or give more than a tensor.
_OTHERS = (nn.Softmax, nn.Softmax2d, nn.LogSoftmax, nn.Softmin, nn.MultiheadAttention)


def places(model: nn.Module, images: Tensor) -> dict[str, list[nn.Module]]:
    """The modules that each of :data:`PLACEMENTS` is beside, in the order in which some images reach them.

    A placement that the network does not have gets an empty list: activations that are functions cannot be found,
    and between a norm and an activation that it applies itself nothing can stand.
    """
    called: list[nn.Module] = []
    with ExitStack() as stack, torch.no_grad():
        for module in model.modules():
            hook = module.register_forward_pre_hook(lambda module, _: called.append(module))
            stack.callback(hook.remove)
        stack.callback(model.train, model.training)
        model.eval()(images)
    once = list({id(module): module for module in called}.values())
    norms: list[nn.Module] = [module for module in once if is_batch_norm(module)]
    alone: list[nn.Module] = [module for module in norms if activation_of(module) == IDENTITY]
    linear: list[nn.Module] = [module for module in called if isinstance(module, nn.Linear)]
    return {
        "before norm": norms,
        "after norm": alone,
        "after activation": [
            module for module in once if _activates(module) or (module in norms and module not in alone)
        ],
        "before last": linear[-1:],
    }


def with_dropout(model: nn.Module, placement: str, rate: float, images: Tensor) -> bool:
    """Gives a model dropout at one of :data:`PLACEMENTS`, in place; False where it has no such place.

    The structure stays as it is, so it works whatever the model does with its modules. Dropout is on where the module
    beside it is in training mode.

    Args:
        model: Changed for good.
        placement: Where.
        rate: The share of values that become 0.
        images: Some that the model takes, to see what it calls.

    Raises:
        ValueError: If the placement is not one of these.
    """
    if placement not in PLACEMENTS:
        raise ValueError(f"placement is one of {', '.join(PLACEMENTS)}, not {placement!r}")

    def before(
        module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return with_input(given, named, lambda values: functional.dropout(values, rate, module.training))

    def after(module: nn.Module, given: tuple[Any, ...], output: Any) -> Any:
        # A class derived from a norm may give more than its values, which then come first.
        if isinstance(output, tuple):
            return functional.dropout(output[0], rate, module.training), *output[1:]
        return functional.dropout(output, rate, module.training)

    found = places(model, images)[placement]
    for module in found:
        if placement.startswith("before"):
            module.register_forward_pre_hook(before, with_kwargs=True)
        else:
            module.register_forward_hook(after)
    return bool(found)


def _activates(module: nn.Module) -> bool:
    return type(module).__module__ == nn.ReLU.__module__ and not isinstance(module, _OTHERS)
