"""What is remembered of tensors without keeping them: of storages what is kept, of outputs what they were made of."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from ..activation import Activation
from .recipes import Autocast, Kept, Recipe, geometry

__all__ = ["Output", "Place", "Storage"]


class Storage:
    """One storage: what is kept of it now, and the output of a norm that it holds, if it does."""

    __slots__ = ("kept", "output", "recipe", "reference")

    def __init__(self, reference: StorageWeakRef) -> None:
        self.reference = reference  # while this is here, no other storage gets the address
        self.kept: weakref.ref[Kept] | None = None
        self.recipe: weakref.ref[Recipe] | None = None
        self.output: Output | str | None = None  # or why there is no recipe for it


class Place:
    """A tensor by its storage and strides, which keeps it no longer alive than others do."""

    __slots__ = ("dtype", "geometry", "storage", "version")

    def __init__(self, tensor: Tensor, storage: Storage) -> None:
        self.storage, self.version, self.dtype = storage, tensor._version, tensor.dtype
        self.geometry = geometry(tensor)


@dataclass(slots=True)
class Output:
    """An output, and what it was computed from. None of the larger tensors is held here."""

    place: Place
    device: torch.device
    kernel: ModuleType
    input: Place
    mean: Tensor
    var: Tensor
    weight: Tensor | None
    bias: Tensor | None
    residual: Place | None
    mask: Place | None
    eps: float
    activation: Activation
    autocast: Autocast
