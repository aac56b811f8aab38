"""``convert``: the batch norms of a model, as another kind of batch norm."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch

from ..errors import ArgumentError, SurgeryError
from ..nn._base import is_batch_norm
from ..nn.frozen import Frozen
from .conversion import Conversion, remembered_tensors
from .copying import shared
from .kinds import KINDS, Kind, find, refusal

__all__ = ["convert", "convert_layer"]


def convert(
    model: torch.nn.Module,
    to: str,
    *,
    where: Callable[[str, torch.nn.Module], bool] | None = None,
    strict: bool = False,
    dimensions: int | None = None,
    **arguments: Any,
) -> torch.nn.Module:
    """The model with its batch norms as another kind, and everything else as it is.

    ======================  ===========================================================================================
    ``"torch"``             ``torch.nn.BatchNorm1d``, ``2d``, ``3d``
    ``"torch-sync"``        ``torch.nn.SyncBatchNorm``; takes ``process_group``
    ``"batch"``             :class:`batchnorm.BatchNorm2d` (``1d``, ``3d``)
    ``"fused"``             :class:`batchnorm.FusingBatchNorm2d`, computed with the sum and the activation after it; a
                            layer that has an activation is a :class:`batchnorm.BatchNormAct2d`
    ``"sync"``              :class:`batchnorm.SyncBatchNorm`; takes ``process_group``
    ``"ghost"``             :class:`batchnorm.GhostBatchNorm2d`; takes ``ghost_size``
    ``"renorm"``            :class:`batchnorm.BatchRenorm2d`; takes ``r_max``, ``d_max`` and ``warmup``
    ``"frozen"``            :class:`batchnorm.FrozenBatchNorm2d`
    ``"domain"``            :class:`batchnorm.DomainBatchNorm2d`; takes ``domains``, the first of which gets the
                            layer's statistics and the others copies of them
    ======================  ===========================================================================================

    The result is a new module tree with the parameters and buffers of the model given: the same objects, so an
    optimizer stays valid. The model given stays as it is. Training flags, ``requires_grad``, hooks, momentum, eps,
    dtype, device and the user's own attributes come along; a layer at two places stays one layer.

    Converting back is exact: a layer remembers what it was (a subclass, its ``ghost_size``, the statistics of its other
    domains, its dimensions as a ``SyncBatchNorm``), until it is converted back or for as long as it exists.

    A layer that cannot be changed is left, and named in one warning: a subclass that overrides a method of its base,
    such as ``forward``; one with an activation where the new kind has none; one whose dimensions nobody knows
    (``torch.nn.SyncBatchNorm`` to a kind that has 1d, 2d and 3d); one without running statistics to ``"renorm"``,
    ``"frozen"`` or ``"domain"``; one that is frozen by :func:`batchnorm.freeze`, parametrized, or lazy and not yet
    initialised.

    Args:
        model: Any module; it may be a norm itself.
        to: The kind.
        where: Called with the path and the layer of each norm, says whether it may be changed.
        strict: Whether a layer that cannot be changed is an error.
        dimensions: 1, 2 or 3, for layers of which nobody knows.
        **arguments: The new kind's own. Layers that are of the kind already take them too.

    Returns:
        The new model.

    Raises:
        ArgumentError: An unknown kind, or arguments that it does not take.
        SurgeryError: The model cannot be copied, is compiled or scripted, or wrapped for data parallelism; or, with
            ``strict=True``, a layer cannot be changed.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU())
        >>> ghost = convert(model, "ghost", ghost_size=16)
        >>> ghost[1]
        GhostBatchNorm2d(8, ..., ghost_size=16)
        >>> ghost[1].weight is model[1].weight
        True
        >>> convert(ghost, "torch")[1]
        BatchNorm2d(8, ...)
    """
    if not isinstance(arguments.get("domains", ""), str):
        arguments["domains"] = tuple(arguments["domains"])  # perhaps an iterator, and there are many layers
    kind = _kind(to, dimensions, arguments)
    _refuse_wrapped(model)
    planned: list[tuple[int, Conversion]] = []
    kept: list[str] = []
    modules = list(model.named_modules())
    for position, (path, layer) in enumerate(modules):
        if is_batch_norm(layer) and (where is None or where(path, layer)):
            conversion = _conversion(layer, kind, dimensions, arguments)
            if isinstance(conversion, str):
                kept.append(f"{path or '(the model itself)'} ({type(layer).__name__}): {conversion}")
            elif conversion is not None:
                planned.append((position, conversion))
    if kept:
        problem = f"{len(kept)} of the norms cannot become {to!r}: {'; '.join(kept)}."
        if strict:
            raise SurgeryError(problem, "leave them out by where=, or replace them by hand.")
        warnings.warn(f"{problem} They stay as they are. where= leaves layers out without a warning.", stacklevel=2)
    new = _copy(model)
    copies = list(new.modules())
    for position, conversion in planned:
        conversion.apply(copies[position])
    return new


def convert_layer(layer: torch.nn.Module, to: str, **arguments: Any) -> None:
    """Makes one norm another kind, in place: the object, its parameters and its buffers stay.

    Args:
        layer: The norm.
        to: The kind, as for :func:`convert`.
        **arguments: The new kind's own.

    Raises:
        SurgeryError: It cannot be of that kind; it is as it was.
    """
    conversion = _conversion(layer, _kind(to, None, arguments), None, arguments)
    if isinstance(conversion, str):
        raise SurgeryError(f"a {type(layer).__name__} cannot become {to!r}: {conversion}.", "replace it by hand.")
    if conversion is not None:
        conversion.apply(layer)


def _kind(to: str, dimensions: int | None, arguments: dict[str, Any]) -> Kind:
    if to not in KINDS:
        raise ArgumentError(f"there is no kind {to!r} of batch norm.", f"one of {', '.join(map(repr, KINDS))}.")
    kind = KINDS[to]
    unknown = [name for name in arguments if name not in kind.arguments]
    if unknown:
        raise ArgumentError(
            f"{to!r} does not take {', '.join(unknown)}.",
            f"it takes {', '.join(kind.arguments)}." if kind.arguments else "it takes no arguments.",
        )
    if dimensions not in (None, 1, 2, 3):
        raise ArgumentError(f"dimensions={dimensions!r}.", "1 for (N, C) and (N, C, L) input, 2 for images, 3.")
    kind.build(arguments)  # which raises where they mean nothing, whatever the layers
    return kind


def _conversion(
    layer: torch.nn.Module, kind: Kind, dimensions: int | None, arguments: dict[str, Any]
) -> Conversion | str | None:
    """What is to be done, or why it cannot be; None where there is nothing to do."""
    found = find(layer)
    if not arguments and (isinstance(layer, Frozen) if kind.name == "frozen" else found and found.kind is kind):
        return None
    reason = refusal(layer, found)
    if reason is not None or found is None:
        return reason
    conversion = Conversion(layer, found, kind, dimensions, arguments)
    return conversion if conversion.reason is None else conversion.reason


def _copy(model: torch.nn.Module) -> torch.nn.Module:
    # Buffers of domains that are put aside, and process groups, which nothing can copy.
    others = [tensor for layer in model.modules() for tensor in remembered_tensors(layer)]
    group: Any = getattr(torch.distributed, "ProcessGroup", ())
    groups = [each for layer in model.modules() for each in vars(layer).values() if isinstance(each, group)]
    new = shared(model, [*others, *groups])
    for tensors in ("named_parameters", "named_buffers"):
        ours, theirs = (dict(getattr(each, tensors)(remove_duplicate=False)) for each in (new, model))
        other = [path for path, tensor in theirs.items() if ours.get(path) is not tensor]
        if other or len(ours) != len(theirs):
            raise SurgeryError(
                f"a copy of the model has other tensors than the model: {', '.join(other)}.",
                "some module's __deepcopy__ makes new ones: convert before it does, or leave it out of the model.",
            )
    return new


def _refuse_wrapped(model: torch.nn.Module) -> None:
    for path, module in model.named_modules():
        what = None
        if "_orig_mod" in module._modules or module._compiled_call_impl is not None:
            what, mend = "compiled", "convert the model, then compile the result."
        elif isinstance(module, torch.jit.ScriptModule):
            what, mend = "scripted", "convert the model, then script the result."
        elif isinstance(module, torch.nn.parallel.DistributedDataParallel):
            what, mend = "wrapped for data parallelism", "convert the model inside (.module), then wrap the result."
        if what is not None:
            raise SurgeryError(f"{path or 'the model'} ({type(module).__name__}) is {what} and cannot be copied.", mend)
