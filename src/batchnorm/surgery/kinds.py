"""The kinds of batch norm that ``convert`` knows, which one a layer is, and why a layer can only be what it is."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch.nn.utils.parametrize import is_parametrized

from ..activation import IDENTITY, Activation
from ..nn import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    BatchNormAct1d,
    BatchNormAct2d,
    BatchNormAct3d,
    BatchRenorm1d,
    BatchRenorm2d,
    BatchRenorm3d,
    DomainBatchNorm1d,
    DomainBatchNorm2d,
    DomainBatchNorm3d,
    FrozenBatchNorm1d,
    FrozenBatchNorm2d,
    FrozenBatchNorm3d,
    FusingBatchNorm1d,
    FusingBatchNorm2d,
    FusingBatchNorm3d,
    GhostBatchNorm1d,
    GhostBatchNorm2d,
    GhostBatchNorm3d,
    SyncBatchNorm,
)
from ..nn._base import Norm
from ..nn._variant import Variant
from ..nn.frozen import Frozen

__all__ = ["KINDS", "Found", "Kind", "activation_of", "find", "refusal", "takes_activation"]


@dataclass(frozen=True)
class Kind:
    """One kind of batch norm.

    Attributes:
        name: What :func:`batchnorm.convert` calls it.
        classes: Its class for each number of spatial dimensions, 1 to 3; under 0 one for all.
        activated: The same for layers that have an activation; None where they can have none.
        needs_statistics: Whether it makes no sense without running statistics.
    """

    name: str
    classes: dict[int, type[torch.nn.Module]]
    activated: dict[int, type[torch.nn.Module]] | None = None
    needs_statistics: bool = False

    @cached_property
    def arguments(self) -> tuple[str, ...]:
        """What its constructor takes that others' do not."""
        common = inspect.signature(BatchNormAct1d.__init__).parameters
        own = inspect.signature(next(iter(self.classes.values())).__init__).parameters
        return tuple(name for name in own if name not in common)

    @cached_property
    def attributes(self) -> tuple[str, ...]:
        """What its layers have in their ``__dict__`` that others have not."""
        common = {*vars(torch.nn.BatchNorm1d(1)), "nonfinite", "activation"}
        return tuple(name for name in vars(self.build({})) if name not in common)

    @cached_property
    def ours(self) -> bool:
        """Whether it is this library's."""
        return issubclass(next(iter(self.classes.values())), Norm)

    def build(self, arguments: dict[str, Any]) -> torch.nn.Module:
        """A small layer of the kind: its constructor checks the arguments, and names the attributes."""
        return next(iter(self.classes.values()))(1, **arguments)

    def class_for(self, dimensions: int, activation: Activation) -> type[torch.nn.Module] | None:
        """What a layer with this activation is; None where there is no such layer."""
        classes = self.classes if activation == IDENTITY else self.activated
        if classes is None:
            return None
        cls = classes[0 if 0 in classes else dimensions]
        plain = cls.__dict__.get("_plain")
        return plain if plain is not None and activation == IDENTITY else cls


def _three(*classes: type[torch.nn.Module]) -> dict[int, type[torch.nn.Module]]:
    return dict(enumerate(classes, 1))


def _variant(name: str, classes: dict[int, type[torch.nn.Module]], *, needs_statistics: bool = False) -> Kind:
    return Kind(name, classes, classes, needs_statistics)


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("torch", _three(torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d)),
        Kind("torch-sync", {0: torch.nn.SyncBatchNorm}),
        Kind("batch", _three(BatchNorm1d, BatchNorm2d, BatchNorm3d)),
        Kind(
            "fused",
            _three(FusingBatchNorm1d, FusingBatchNorm2d, FusingBatchNorm3d),
            _three(BatchNormAct1d, BatchNormAct2d, BatchNormAct3d),
        ),
        _variant("sync", {0: SyncBatchNorm}),
        _variant("ghost", _three(GhostBatchNorm1d, GhostBatchNorm2d, GhostBatchNorm3d)),
        _variant("renorm", _three(BatchRenorm1d, BatchRenorm2d, BatchRenorm3d), needs_statistics=True),
        _variant("frozen", _three(FrozenBatchNorm1d, FrozenBatchNorm2d, FrozenBatchNorm3d), needs_statistics=True),
        _variant("domain", _three(DomainBatchNorm1d, DomainBatchNorm2d, DomainBatchNorm3d), needs_statistics=True),
    )
}

_KNOWN = {
    cls: (kind, dimensions)
    for kind in KINDS.values()
    for classes in (kind.classes, kind.activated or {})
    for dimensions, cls in classes.items()
}

# A subclass may have these of its own and still compute what its base computes.
_HARMLESS = {
    "__annotations__",
    "__constants__",
    "__dict__",
    "__doc__",
    "__firstlineno__",
    "__init__",
    "__init_subclass__",
    "__module__",
    "__orig_bases__",
    "__parameters__",
    "__qualname__",
    "__repr__",
    "__static_attributes__",
    "__weakref__",
    "_get_name",
    "_plain",
    "_version",
    "extra_repr",
    "reset_parameters",
    "reset_running_stats",
}


def takes_activation(cls: type[torch.nn.Module]) -> bool:
    """Whether layers of a class have an activation, the identity if no other."""
    return issubclass(cls, (Variant, BatchNormAct1d, BatchNormAct2d, BatchNormAct3d))


def activation_of(layer: Any) -> Activation:
    """The activation that a norm computes."""
    return layer.activation if takes_activation(type(layer)) else IDENTITY


@dataclass(frozen=True)
class Found:
    """What a layer is.

    Attributes:
        kind: Its kind.
        dimensions: Its spatial dimensions; 0 where its class takes any number.
        base: The class of this list that its own class is, or derives from.
    """

    kind: Kind
    dimensions: int
    base: type[torch.nn.Module]


def find(layer: torch.nn.Module) -> Found | None:
    """The kind of a layer; None for a batch norm that derives from none of theirs."""
    for cls in type(layer).__mro__:
        if cls in _KNOWN:
            return Found(*_KNOWN[cls], cls)
    return None


def refusal(layer: Any, found: Found | None) -> str | None:
    """Why a layer cannot be of another class than it is; None where it can."""
    name = type(layer).__name__
    if torch.nn.parameter.is_lazy(layer.weight) or torch.nn.parameter.is_lazy(layer.running_mean):
        return "it is lazy and has seen no input yet"
    if found is None:
        return f"{name} is a class of its own and may compute something else"
    if isinstance(layer, Frozen) and found.kind.name != "frozen":
        return "it is frozen: unfreeze(model) before" if layer.thawed_class else f"{name} is frozen by its class"
    if is_parametrized(layer):
        return "its parameters are parametrized (torch.nn.utils.parametrize)"
    if layer.__dict__.get("_sink") is not None:
        return "its statistics are being accumulated (accumulate_statistics)"
    own = _overridden(layer, found.base)
    return f"{name} has its own {', '.join(own)}" if own else None


def _bases(cls: type[torch.nn.Module] | None) -> tuple[type, ...]:
    return () if cls is None else cls.__mro__


def _overridden(layer: torch.nn.Module, base: type[torch.nn.Module]) -> list[str]:
    """What a layer's class, or the layer itself, has in place of a method of its base."""
    plain = base.__dict__.get("_plain")
    # Not only those before the base: a mixin after it comes before torch.nn.Module.
    between = [cls for cls in type(layer).__mro__ if cls not in base.__mro__ and cls not in (plain, *_bases(plain))]
    theirs = set(dir(base)) - _HARMLESS
    own = {name for cls in between for name in vars(cls) if name in theirs}
    if any(vars(cls).get("__slots__") for cls in between):
        own.add("__slots__")  # Python does not let such an object change its class
    methods = {name for name in vars(layer) if name in theirs and inspect.isroutine(getattr(type(layer), name))}
    return sorted(own | methods)
