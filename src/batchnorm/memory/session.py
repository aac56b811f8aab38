"""What one thread's ``lean`` knows: which storage holds a norm's output, and what is kept of which storage.

All of it is weak. A recipe is owned by the graph that asked for it, and shares what other nodes of the graph keep; so
"kept anyway" is simply: alive. A storage is known by the address of its C++ object, which a weak reference pins: no
other storage can get it while that is there.
"""

from __future__ import annotations

import threading
import weakref
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

from ..activation import Activation
from ..ops.observers import observers
from .places import Output, Place, Storage
from .recipes import Kept, Part, Recipe, autocast_of, geometry
from .report import Counts

if TYPE_CHECKING:
    from .context import Lean

__all__ = ["OTHER_HOOKS", "Session", "hooks_on_top", "sessions"]

# How many recipes may stand behind one: who asks for the last has all of them computed, and held until autograd asks
# for them too.
_LONGEST_CHAIN = 4

_MODIFIED = "modified in place before it was kept"
_NO_GRADIENT = "no gradient flows through the norm, so nothing keeps its input"
_DETACHED = "kept by what passes no gradient on to the norm"
_CHAIN = f"a chain of {_LONGEST_CHAIN} ends there"
_INPUT = "nothing else keeps the norm's input"
_RESIDUAL = "nothing else keeps the residual"
_LAZY = "a negative or conjugate view"
OTHER_HOOKS = "other hooks for saved tensors are active, as in a non-reentrant checkpoint: lean does nothing there"


def hooks_on_top() -> object:
    """The pack hook that autograd calls now, if there is one: of several only the innermost."""
    # There is no public way to ask.
    top = torch._C._autograd._top_saved_tensors_default_hooks(False)
    return None if top is None else top[0]


def _unpack(packed: Kept | Part | Tensor) -> Tensor:
    return packed if isinstance(packed, Tensor) else packed.value()


def _is_plain(tensor: Tensor) -> bool:
    # Others have no memory of their own. What torch.func wraps does not come here: autograd keeps what is inside.
    return type(tensor) in (Tensor, torch.nn.Parameter) and tensor.layout is torch.strided


def _is_lazy(tensor: Tensor) -> bool:
    # The sign is no part of the memory, nor of its strides.
    return tensor.is_neg() or tensor.is_conj()


class Session:
    """What one thread's outermost ``lean`` knows of storages, from its beginning to its end.

    Args:
        opener: That ``lean``.
    """

    def __init__(self, opener: Lean) -> None:
        self.hooks = saved_tensors_hooks(self._pack, _unpack)
        self.counts: list[Counts] = []
        self._storages: dict[int, Storage] = {}
        self._sweep_at = 256
        self._thread = threading.get_ident()
        self._opener = weakref.ref(opener)

    def open(self) -> None:
        """Begin; ``RuntimeError``, and nothing changed, where torch allows no hooks."""
        # First of all: what a Ctrl-C leaves behind is found there.
        sessions[self._thread] = self
        try:
            observers[self._thread] = self.observe
            self.hooks.__enter__()
        except BaseException:
            self.drop()
            raise

    def close(self) -> None:
        """End, and forget."""
        try:
            self.hooks.__exit__()
        finally:
            if self.is_on_top():  # a Ctrl-C came first
                self.hooks.__exit__()
            self._forget()

    def is_left(self) -> bool:
        """Whether its block is over, and a Ctrl-C just then kept it from being closed."""
        opener = self._opener()
        return opener is None or not opener.is_in(self)

    def drop(self) -> None:
        """End where nobody knows how far opening or closing came, unless other hooks lie on top of its own."""
        if self.is_on_top():
            self.close()
        elif hooks_on_top() is None:
            self._forget()

    def _forget(self) -> None:
        observers.pop(self._thread, None)
        # torch keeps the hooks, and so this object, with every tensor that went through them.
        self._storages.clear()
        sessions.pop(self._thread, None)

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
        if any(tensor is not None and tensor.is_inference() for tensor in tensors):
            return  # torch is about to refuse them, in words of its own
        if any(tensor is not None and _is_lazy(tensor) for tensor in tensors):
            self._storage(output).output = _LAZY
            return
        places = [None if tensor is None else Place(tensor, self._storage(tensor)) for tensor in tensors]
        place, x, added, valid = places
        assert place is not None
        assert x is not None
        if place.geometry[2] or output.untyped_storage().nbytes() != output.numel() * output.element_size():
            return  # not all of its memory, so a recipe would not make what its neighbours there need
        place.storage.output = Output(
            place,
            output.device,
            kernel,
            x,
            mean.detach(),
            var.detach(),
            # Copies: the norm itself keeps what its gradient needs of them, and refuses what has been modified.
            None if weight is None else weight.detach().clone(),
            None if bias is None else bias.detach().clone(),
            added,
            valid,
            eps,
            activation,
            autocast_of(output.device),
        )

    def _storage(self, tensor: Tensor) -> Storage:
        storage = tensor.untyped_storage()
        known = self._storages.get(storage._cdata)
        if known is None:
            if len(self._storages) >= self._sweep_at:
                self._storages = {k: s for k, s in self._storages.items() if not s.reference.expired()}
                self._sweep_at = 2 * len(self._storages) + 256
            known = self._storages[storage._cdata] = Storage(StorageWeakRef(storage))
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
            if not _is_lazy(tensor):
                storage.kept = weakref.ref(packed)
        for count in self.counts:
            count.keep(tensor, isinstance(found, Recipe), found if isinstance(found, str) else "")
        return packed

    def _instead(self, tensor: Tensor, storage: Storage) -> Recipe | str:
        """The recipe that is kept in the tensor's place, or why there is none."""
        output = storage.output
        if output is None or isinstance(output, str):
            return output or ""
        if _is_lazy(tensor):
            return _LAZY
        if tensor._version != output.place.version:
            return _MODIFIED
        if not tensor.requires_grad:
            # Or the node that keeps it may outlive the norm's, and with it what the norm keeps.
            return _DETACHED
        kept = None if storage.kept is None else storage.kept()
        if tensor.dtype != output.place.dtype or (kept is not None and kept.version == tensor._version):
            return ""  # kept already
        return self._recipe(storage, output, _LONGEST_CHAIN)

    def _recipe(self, storage: Storage, output: Output, links: int) -> Recipe | str:
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

    def _part(self, place: Place, links: int, missing: str) -> Part | str:
        """What a recipe needs, where something else keeps it, or it has a recipe of its own."""
        storage = place.storage
        kept = None if storage.kept is None else storage.kept()
        output = storage.output
        source: Kept | Recipe | str = missing
        if kept is not None and kept.version == place.version and kept.tensor.dtype == place.dtype:
            source = kept
        elif isinstance(output, Output) and (output.place.version, output.place.dtype) == (place.version, place.dtype):
            source = self._recipe(storage, output, links - 1)
            if isinstance(source, Recipe):
                storage.recipe = weakref.ref(source)
        return source if isinstance(source, str) else Part(source, *place.geometry)


sessions: dict[int, Session] = {}  # by thread
