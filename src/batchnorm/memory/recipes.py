"""What autograd keeps in a tensor's place: the tensor under watch, or what computes it again.

Autograd checks that what it kept has not been modified in place since. Where hooks stand in between it does not, so
:class:`Kept` checks it here, in torch's own words.
"""

from __future__ import annotations

from types import ModuleType
from typing import TypeAlias

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from ..activation import Activation

__all__ = ["Autocast", "Kept", "Part", "Recipe", "autocast_of", "geometry"]

# Whether autocast was on, and for which dtype.
Autocast: TypeAlias = tuple[bool, torch.dtype]


def autocast_of(device: torch.device) -> Autocast:
    """What autocast does on such a device now."""
    if not torch.amp.is_autocast_available(device.type):
        return False, torch.float32  # the meta device
    return torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type)


def geometry(tensor: Tensor) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Size, strides and offset: which part of its storage the tensor is."""
    return tensor.size(), tensor.stride(), int(tensor.storage_offset())


class Kept:
    """A tensor, and the version that it had when it was kept.

    Args:
        tensor: What is kept, under an alias: of a node's own output, the tensor itself would hold the node.
    """

    __slots__ = ("__weakref__", "origin", "tensor", "version")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()
        self.version = tensor._version
        node = tensor.grad_fn
        self.origin = "" if node is None else f", which is output {tensor.output_nr} of {node.name()},"

    def value(self, role: str = "") -> Tensor:
        """The tensor; ``RuntimeError`` if it has been modified since. ``role`` says what it was needed for."""
        now = self.tensor._version
        if now != self.version:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation: "
                f"[{self.tensor.type()} {list(self.tensor.shape)}]{self.origin}{role} is at version {now}; "
                f"expected version {self.version} instead. Hint: enable anomaly detection to find the operation that "
                "failed to compute its gradient, with torch.autograd.set_detect_anomaly(True, check_nan=False)."
            )
        return self.tensor


class Part:
    """What a tensor is, of memory that is kept or can be computed again: the memory's part with these strides."""

    __slots__ = ("offset", "size", "source", "stride")

    def __init__(self, source: Kept | Recipe, size: tuple[int, ...], stride: tuple[int, ...], offset: int) -> None:
        self.source, self.size, self.stride, self.offset = source, size, stride, offset

    def value(self, role: str = "") -> Tensor:
        """The tensor."""
        memory = self.source.value(role)
        if geometry(memory) == (self.size, self.stride, self.offset):
            return memory
        with torch.no_grad():
            return memory.as_strided(self.size, self.stride, self.offset)


class Recipe:
    """What an output of batch norm is computed from, and the output whenever it is asked for.

    Args:
        size: Of the output, which fills its storage.
        stride: Likewise.
        dtype: Likewise.
        device: Likewise.
        kernel: Whose ``normalize`` computes it.
        input: x; of this, residual and mask, what is kept of them.
        mean: As the forward pass had it.
        var: Likewise.
        weight: gamma, likewise.
        bias: beta, likewise.
        residual: What was added.
        mask: Which positions are valid.
        eps: Added to the variance.
        activation: What came last.
        autocast: As it was in the forward pass; kernels that call torch's operators depend on it.

    Attributes:
        depth: How many recipes stand behind this one, one needing the next.
        packed: Whether autograd has it in the place of a tensor; else it is there for other recipes alone.
    """

    __slots__ = (
        "__weakref__",
        "_counter",
        "_held",
        "_layer",
        "_made",
        "_version",
        "depth",
        "device",
        "dtype",
        "packed",
        "size",
        "stride",
    )

    def __init__(
        self,
        size: tuple[int, ...],
        stride: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
        *,
        kernel: ModuleType,
        input: Part,
        mean: Tensor,
        var: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Part | None,
        mask: Part | None,
        eps: float,
        activation: Activation,
        autocast: Autocast,
    ) -> None:
        self.size, self.stride, self.dtype, self.device = size, stride, dtype, device
        self._layer = (kernel, input, mean, var, weight, bias, residual, mask, eps, activation, autocast)
        behind = (part.source for part in (input, residual) if part is not None)
        self.depth: int = max((recipe.depth + 1 for recipe in behind if isinstance(recipe, Recipe)), default=0)
        self.packed = False
        self._made: StorageWeakRef | None = None
        self._counter = torch.empty(0)  # shares the version counter of what was made, and not its memory
        self._version = 0
        self._held: Tensor | None = None

    def value(self, role: str = "") -> Tensor:
        """The output, computed again unless somebody still holds it since the last time, as it was made.

        Asked for by another recipe (``role``), it is held until autograd asks for it itself, which it will do soon: so
        a chain of recipes is computed once, from its end to its beginning, and not anew for each of its members.
        """
        output = self._value()
        self._held = output if role and self.packed else None
        return output

    def _value(self) -> Tensor:
        # By its memory: autograd wraps what it is handed in a tensor of its own, and drops this one. There is no public
        # name for it; torch.multiprocessing shares tensors by the same two.
        storage = None if self._made is None else torch.UntypedStorage._new_with_weak_ptr(self._made.cdata)
        empty = torch.empty(0, dtype=self.dtype, device=self.device)
        with torch.no_grad():
            # A backward pass may write into what it was handed. Setting `data` leaves the version counter as it is.
            if storage is not None and self._counter._version == self._version:
                again = self._counter.detach()
                again.data = empty.set_(storage, 0, self.size, self.stride)
                return again
            output = self._compute()
            self._counter, self._version = output.detach(), output._version
            self._counter.data = empty
        self._made = StorageWeakRef(output.untyped_storage())
        return output

    def _compute(self) -> Tensor:
        kernel, *layer, eps, activation, autocast = self._layer
        names = ("input", "", "", "", "", "residual", "mask")
        tensors = [
            part.value(f" the {name} of a batch norm whose output lean() computes again,")
            if isinstance(part, Part)
            else part
            for name, part in zip(names, layer, strict=True)
        ]
        output: Tensor
        if autocast == autocast_of(self.device):
            output = kernel.normalize(*tensors, eps, activation)
        else:
            enabled, dtype = autocast
            with torch.autocast(self.device.type, dtype=dtype, enabled=enabled):
                output = kernel.normalize(*tensors, eps, activation)
        return output
