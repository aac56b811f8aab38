"""The arms of an experiment, derived from one network with batch norm: its norms as another kind, or none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..activation import IDENTITY
from ..errors import BatchNormError
from ..nn._base import is_batch_norm
from ..surgery.convert import convert
from ..surgery.kinds import activation_of
from .error import StudyError

__all__ = ["ARMS", "Shift", "derive", "groups_for", "norms"]

#: What the norms of a network can be. The first two are arms without statistics over a batch.
ARMS = ("none", "group", "batch", "ghost", "renorm", "frozen")

# He and Wu's number of groups (Wu & He 2018, Section 4.1), where a layer has channels enough for it.
_GROUPS = 32
# Fewer channels a group than this and, on small images, a group has few values: layers of 8 or 16 channels, as
# networks for a CPU have them, get fewer groups instead.
_LEAST = 4


class Shift(nn.Module):
    """What is left of a norm without its normalisation: x + β, so that a layer without a bias still has one.

    γ goes too: a network without batch norm has none.
    """

    def __init__(self, bias: nn.Parameter) -> None:
        super().__init__()
        self.bias = bias

    def forward(self, input: Tensor) -> Tensor:
        """Takes (N, C, …)."""
        return input + self.bias.reshape(-1, *[1] * (input.dim() - 2))


def norms(model: nn.Module) -> dict[str, nn.Module]:
    """The batch norms of a model by their paths, each once."""
    return {path: module for path, module in model.named_modules() if is_batch_norm(module)}


def groups_for(channels: int) -> int:
    """Groups of a group norm of so many channels: the most that divide them, at most 32, of at least 4 channels."""
    most = max(1, min(_GROUPS, channels // _LEAST))
    return next(groups for groups in range(most, 0, -1) if channels % groups == 0)


def derive(model: nn.Module, arm: str, **arguments: Any) -> nn.Module:
    """The model with its batch norms as one of :data:`ARMS`; it shares its parameters with the one given.

    Args:
        model: One that nobody needs any more as it is: other arms are derived from others, built anew.
        arm: "none" leaves x + β of a norm, "group" is group norm with the norm's γ, β and eps; the others are kinds of
            :func:`batchnorm.convert`.
        **arguments: Of :func:`batchnorm.convert`, such as ``ghost_size``.

    Raises:
        StudyError: If there is no such arm, or a norm of the model cannot be that.
    """
    if arm not in ARMS:
        raise StudyError(f"arm is one of {', '.join(ARMS)}, not {arm!r}.")
    if arm == "none":
        return _replaced(model, _shift)
    if arm == "group":
        return _replaced(model, _group)
    try:
        return convert(model, arm, strict=True, **arguments)
    except BatchNormError as error:
        raise StudyError(f"the network has no arm {arm!r}: {error.problem}", error.mend or "") from error


def _shift(norm: Any) -> nn.Module:
    return nn.Identity() if norm.bias is None else Shift(norm.bias)


def _group(norm: Any) -> nn.Module:
    group = nn.GroupNorm(groups_for(norm.num_features), norm.num_features, norm.eps, affine=norm.weight is not None)
    if norm.weight is not None:
        group.weight = norm.weight
        if norm.bias is not None:
            group.bias = norm.bias
        else:
            group.register_parameter("bias", None)
    return group


def _replaced(model: nn.Module, make: Callable[[Any], nn.Module]) -> nn.Module:
    found = norms(model)
    activated = [path for path, norm in found.items() if activation_of(norm) != IDENTITY]
    if activated:
        raise StudyError(
            f"the norm {activated[0]} ({type(found[activated[0]]).__name__}) has an activation of its own, which "
            "neither none nor group can take over.",
            "give the model with norm and activation as two layers",
        )
    made = {id(norm): make(norm) for norm in found.values()}
    if id(model) in made:
        return made[id(model)]
    for module in list(model.modules()):
        for name, child in list(module._modules.items()):
            if id(child) in made:
                module._modules[name] = made[id(child)]
    return model
