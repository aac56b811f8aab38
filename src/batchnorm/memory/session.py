"""What one thread's ``lean`` knows: which storage holds a norm's output, and what is kept of which storage.

All of it is weak. A recipe is owned by the graph that asked for it, and shares what other nodes of the graph keep; so
"kept anyway" is simply: alive. A storage is known by the address of its C++ object, which a weak reference pins: no
other storage can get it while that is there.
"""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

from ..activation import Activation
from ..ops.observers import observers
from .recipes import Autocast, Kept, Part, Recipe, autocast_of, geometry
from .report import Counts

__all__ = ["OTHER_HOOKS", "Session", "hooks_on_top", "sessions"]

# How many recipes may stand behind one: each of them is computed again for every output further up the chain.
_LONGEST_CHAIN = 4

_MODIFIED = "modified in place before it was kept"
_NO_GRADIENT = "no gradient flows through the norm, so nothing keeps its input"
_DETACHED = "kept by what passes no gradient on to the norm"
_CHAIN = f"a chain of {_LONGEST_CHAIN} ends there"
_INPUT = "nothing else keeps the norm's input"
_RESIDUAL = "nothing else keeps the residual"
OTHER_HOOKS = "other hooks for saved tensors are active, as in a non-reentrant checkpoint: lean does nothing there"


def hooks_on_top() -> object:
    """The pack hook that autograd calls now, if there is one: of several only the innermost."""
    # There is no public way to ask.
    top = torch._C._autograd._top_saved_tensors_default_hooks(False)
    return None if top is None else top[0]


class _Storage:
    """One storage: what is kept of it now, and the output of a norm that it holds, if it does."""

    __slots__ = ("kept", "output", "recipe", "reference")

    def __init__(self, reference: StorageWeakRef) -> None:
        self.reference = reference  # while this is here, no other storage gets the address
        self.kept: weakref.ref[Kept] | None = None
        self.recipe: weakref.ref[Recipe] | None = None
        self.output: _Output | str | None = None  # or why there is no recipe for it


class _Place:
    """A tensor by its storage and strides, which keeps it no longer alive than others do."""

    __slots__ = ("dtype", "geometry", "storage", "version")

    def __init__(self, tensor: Tensor, storage: _Storage) -> None:
        self.storage, self.version, self.dtype = storage, tensor._version, tensor.dtype
        self.geometry = geometry(tensor)


@dataclass(slots=True)
class _Output:
    """An output, and what it was computed from. None of the larger tensors is held here."""

    place: _Place
    device: torch.device
    kernel: ModuleType
    input: _Place
    mean: Tensor
    var: Tensor
    weight: Kept | None
    bias: Kept | None
    residual: _Place | None
    mask: _Place | None
    eps: float
    activation: Activation
    autocast: Autocast


def _unpack(packed: Kept | Part | Tensor) -> Tensor:
    return packed if isinstance(packed, Tensor) else packed.value()


def _is_plain(tensor: Tensor) -> bool:
    # Others have no memory of their own. What torch.func wraps does not come here: autograd keeps what is inside.
    return type(tensor) in (Tensor, torch.nn.Parameter) and tensor.layout is torch.strided


class Session:
    """What one thread's outermost ``lean`` knows of storages, from its beginning to its end."""

    def __init__(self) -> None:
        self.hooks = saved_tensors_hooks(self._pack, _unpack)
        self.counts: list[Counts] = []
        self._storages: dict[int, _Storage] = {}
        self._sweep_at = 256
        self._thread = threading.get_ident()

    def open(self) -> None:
        """Begin; ``RuntimeError``, and nothing changed, where torch allows no hooks."""
        self.hooks.__enter__()
        sessions[self._thread], observers[self._thread] = self, self.observe

    def close(self) -> None:
        """End, and forget."""
        self.hooks.__exit__()
        del sessions[self._thread], observers[self._thread]
        # torch keeps the hooks, and so this object, with every tensor that went through them.
        self._storages.clear()

    def is_on_top(self) -> bool:
        """Whether these hooks are the ones that autograd calls now: only the innermost are."""
        return hooks_on_top() is self.hooks.pack_hook

    def observe(
        self,
        output: Tensor,
        recorded: bool,
        kernel: ModuleType,
        input: Tensor,
        mean: Tensor,
        var: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        mask: Tensor | None,
        eps: float,
        activation: Activation,
    ) -> None:
        """As :class:`batchnorm.ops.observers.Observer`."""
        for count in self.counts:
            count.norms += 1
        if not self.is_on_top():
            for count in self.counts:
                count.report.because(OTHER_HOOKS)
            return
        tensors = (output, input, residual, mask)
        if not all(tensor is None or _is_plain(tensor) for tensor in tensors):
            return
        if not recorded:
            self._storage(output).output = _NO_GRADIENT
            return
        places = [None if tensor is None else _Place(tensor, self._storage(tensor)) for tensor in tensors]
        place, x, added, valid = places
        assert place is not None
        assert x is not None
        if place.geometry[2] or output.untyped_storage().nbytes() != output.numel() * output.element_size():
            return  # not all of its memory, so a recipe would not make what its neighbours there need
        place.storage.output = _Output(
            place,
            output.device,
            kernel,
            x,
            mean.detach(),
            var.detach(),
            None if weight is None else Kept(weight),
            None if bias is None else Kept(bias),
            added,
            valid,
            eps,
            activation,
            autocast_of(output.device),
        )

    def _storage(self, tensor: Tensor) -> _Storage:
        storage = tensor.untyped_storage()
        known = self._storages.get(storage._cdata)
        if known is None:
            if len(self._storages) >= self._sweep_at:
                self._storages = {k: s for k, s in self._storages.items() if not s.reference.expired()}
                self._sweep_at = 2 * len(self._storages) + 256
            known = self._storages[storage._cdata] = _Storage(StorageWeakRef(storage))
        return known

    def _pack(self, tensor: Tensor) -> Kept | Part | Tensor:
        if torch._C._is_tracing():
            return tensor  # whatever is asked of it, torch.jit.trace would write into its graph
        if not _is_plain(tensor):
            return Kept(tensor)
        storage = self._storage(tensor)
        found = self._instead(tensor, storage)
        if isinstance(found, Recipe):
            storage.recipe, found.packed = weakref.ref(found), True
            packed: Kept | Part = Part(found, *geometry(tensor))
        else:
            packed = Kept(tensor)
            storage.kept = weakref.ref(packed)
        for count in self.counts:
            count.keep(tensor, isinstance(found, Recipe), found if isinstance(found, str) else "")
        return packed

    def _instead(self, tensor: Tensor, storage: _Storage) -> Recipe | str:
        """The recipe that is kept in the tensor's place, or why there is none."""
        output = storage.output
        if output is None or isinstance(output, str):
            return output or ""
        if tensor._version != output.place.version:
            return _MODIFIED
        if not tensor.requires_grad:
            # Or the node that keeps it may outlive the norm's, and with it what the norm keeps.
            return _DETACHED
        kept = None if storage.kept is None else storage.kept()
        if tensor.dtype != output.place.dtype or (kept is not None and kept.version == tensor._version):
            return ""  # kept already
        return self._recipe(storage, output, _LONGEST_CHAIN)

    def _recipe(self, storage: _Storage, output: _Output, links: int) -> Recipe | str:
        """How the output is computed again with at most so many recipes behind it, or why it is not."""
        if links < 0:
            return _CHAIN
        recipe = None if storage.recipe is None else storage.recipe()
        if recipe is not None:
            return recipe if recipe.depth <= links else _CHAIN
        input = self._part(output.input, links, _INPUT)
        if isinstance(input, str):
            return input
        residual = None if output.residual is None else self._part(output.residual, links, _RESIDUAL)
        if isinstance(residual, str):
            return residual
        mask = None if output.mask is None else self._part(output.mask, links, _INPUT)
        if isinstance(mask, str):
            return mask
        place = output.place
        return Recipe(
            *place.geometry[:2],
            place.dtype,
            output.device,
            kernel=output.kernel,
            input=input,
            mean=output.mean,
            var=output.var,
            weight=output.weight,
            bias=output.bias,
            residual=residual,
            mask=mask,
            eps=output.eps,
            activation=output.activation,
            autocast=output.autocast,
        )

    def _part(self, place: _Place, links: int, missing: str) -> Part | str:
        """What a recipe needs, where something else keeps it, or it has a recipe of its own."""
        storage = place.storage
        kept = None if storage.kept is None else storage.kept()
        output = storage.output
        source: Kept | Recipe | str = missing
        if kept is not None and kept.version == place.version and kept.tensor.dtype == place.dtype:
            source = kept
        elif isinstance(output, _Output) and (output.place.version, output.place.dtype) == (place.version, place.dtype):
            source = self._recipe(storage, output, links - 1)
            if isinstance(source, Recipe):
                storage.recipe = weakref.ref(source)
        return source if isinstance(source, str) else Part(source, *place.geometry)


sessions: dict[int, Session] = {}  # by thread
