"""What takes the batches of a layer in place of its running statistics, and merges them."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from ..nn._base import Norm
from ..nn.ghost import GhostNorm
from ..ops.dispatch import running_mover
from ..ops.running import is_recomputation

__all__ = ["Calls", "Kept", "Sink", "Swap", "remove"]

# So many calls of a layer are kept as they are. More are merged, which keeps their memory small.
_UNMERGED = 64


@dataclass(slots=True)
class _Call:
    """Mean and unbiased variance, (C,), of ``counts * values`` values a channel; for parts, of ``counts`` parts.

    ``counts`` is written by the call itself where that decides whether it counts: 0 or 1, or the number of parts.
    """

    mean: Tensor
    var: Tensor
    counts: Tensor | int
    values: Tensor | int

    def number(self) -> Tensor:
        number = self.counts * self.values
        # Never torch.tensor(number, device=…): that copies from the host, which waits for the device.
        return number if isinstance(number, Tensor) else torch.full((), number, device=self.mean.device)


class Calls:
    """Running statistics that are to move, and the calls that would have moved them.

    Args:
        layer: Whose calls these are; of layers that share the buffers the first that was called.
        mean: The running mean, (C,).
        var: The running variance, (C,).
        seen: The count of batches, or None.
    """

    def __init__(self, layer: _NormBase, mean: Tensor, var: Tensor, seen: Tensor | None) -> None:
        self.layer, self.mean, self.var, self.seen = layer, mean, var, seen
        self.are_of_parts = isinstance(layer, GhostNorm)
        self._calls: list[_Call] = []

    def add(self, mean: Tensor, var: Tensor, counts: Tensor | int, values: Tensor | int) -> _Call:
        """One more call; what it leaves may still be written into the tensors, until the next one."""
        if len(self._calls) >= _UNMERGED:
            self._calls = [_Call(*self.together(), values=1)]
        call = _Call(mean, var, counts, 1 if self.are_of_parts else values)
        self._calls.append(call)
        return call

    @torch.no_grad()
    def together(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, unbiased variance and number of all the calls, as those of one."""
        dtype = torch.float32 if self.mean.device.type == "mps" else torch.float64  # the best that the device has
        number = torch.stack([call.number() for call in self._calls]).to(dtype)  # (calls,)
        mean = torch.stack([call.mean for call in self._calls]).to(dtype)  # (calls, C)
        var = torch.stack([call.var for call in self._calls]).to(dtype)  # (calls, C)
        # Not a product with 0: what does not count may not be finite.
        without = (number == 0).unsqueeze(1)
        merge = _averaged if self.are_of_parts else _pooled
        return merge(number, mean.masked_fill(without, 0), var.masked_fill(without, 0))

    @torch.no_grad()
    def move(self) -> None:
        """Moves the running statistics by all the calls at once."""
        mean, unbiased, number = self.together()
        momentum: Any = self.layer.momentum
        if momentum is None:
            momentum = 0.0 if self.seen is None else 1.0 / (self.seen + 1).to(mean.dtype)
        skip = isinstance(self.layer, Norm) and self.layer.nonfinite == "skip"
        # A part has its unbiased variance; of values there have to be two.
        enough = number > (0 if self.are_of_parts else 1)
        # Handed over as of two values: the correction, 2 / (2 - 1), then gives back exactly what is halved here.
        move = running_mover(mean, direct=True)
        move(self.mean, self.var, self.seen, enough * 2, mean, unbiased / 2, momentum, skip)

    def buffers(self) -> list[Tensor]:
        """The running statistics."""
        return [buffer for buffer in (self.mean, self.var, self.seen) if buffer is not None]


def _pooled(number: Tensor, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of all values as of one batch; from (calls,) and twice (calls, C)."""
    total, share = number.sum(), number.unsqueeze(1)
    merged = (share * mean).sum(0) / total.clamp(min=1)
    apart = mean - merged
    m2 = ((share - 1).clamp(min=0) * var + share * apart * apart).sum(0)
    return merged, m2 / (total - 1).clamp(min=1), total


def _averaged(number: Tensor, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each part alike; from (calls,) and twice (calls, C)."""
    total, share = number.sum(), number.unsqueeze(1)
    parts = total.clamp(min=1)
    return (share * mean).sum(0) / parts, (share * var).sum(0) / parts, total


_Key: TypeAlias = "tuple[int, bool]"


class Kept:
    """The calls of all layers of a model, by the buffers that they would have moved.

    Args:
        user: Whose they are.

    Attributes:
        open: Whether calls are being taken.
    """

    def __init__(self, user: object) -> None:
        self.open = True
        self._user = weakref.ref(user)
        self._calls: dict[_Key, Calls] = {}

    def is_in_use(self) -> bool:
        """Whether the user is still there to take out what it has put into the layers."""
        return self.open and self._user() is not None

    def of(self, layer: _NormBase, mean: Tensor, var: Tensor, seen: Tensor | None) -> Calls:
        """The calls that would have moved these buffers, of whatever layer that has them."""
        # Ghost batches are another kind of number than values: not merged with those of a layer that shares buffers.
        key = (id(mean), isinstance(layer, GhostNorm))
        calls = self._calls.get(key)
        if calls is None:
            calls = self._calls[key] = Calls(layer, mean, var, seen)
        return calls

    def all(self) -> list[Calls]:
        """In the order of the layers' first calls."""
        return list(self._calls.values())


class Sink:
    """Takes a layer's batches in place of its running buffers (:class:`batchnorm.nn._base.Sink`).

    Args:
        layer: The layer.
        kept: Where its calls go.
    """

    def __init__(self, layer: _NormBase, kept: Kept) -> None:
        self._layer, self._kept = layer, kept
        self._last: _Call | None = None

    def is_in_use(self) -> bool:
        """Whether calls are being taken."""
        return self._kept.is_in_use()

    def __deepcopy__(self, memo: Any) -> None:
        """A copy of the layer has its own running statistics to move."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()

    def buffers(
        self, input: Tensor, mask: Tensor | None, mean: Tensor, var: Tensor, seen: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Buffers for one call, which afterwards hold its mean, its unbiased variance, and 1 if it may count."""
        # As precise as the input's statistics are, whatever the buffers'.
        dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
        own_mean, own_var = torch.zeros((2, *mean.shape), dtype=dtype, device=mean.device).unbind()
        counts = torch.zeros((), dtype=torch.int64, device=mean.device)
        values = _values(input) if mask is None else mask.sum()
        self._last = self._kept.of(self._layer, mean, var, seen).add(own_mean, own_var, counts, values)
        return own_mean, own_var, counts

    def counted(self, count: Tensor) -> None:
        """The last call's statistics are of ``count`` values, of other ranks' too."""
        if self._last is not None:
            self._last.values = count


class Swap:
    """For a layer that has no place for a sink: other buffers while its forward pass runs.

    Args:
        kept: Where its calls go; None in the hooks of a copy, which has its own running statistics to move.
    """

    def __init__(self, kept: Kept | None) -> None:
        self._kept = kept
        self._own: tuple[Any, dict[str, Any], float | None] | None = None
        self._values: int | None = None  # of the call that runs; None for one that does not count

    def is_in_use(self) -> bool:
        """Whether calls are being taken."""
        return self._kept is not None and self._kept.is_in_use()

    def __deepcopy__(self, memo: Any) -> Swap:
        return Swap(None)

    def __reduce__(self) -> tuple[Any, ...]:
        return Swap, (None,)

    def before(self, layer: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        """The hook before the layer's forward pass."""
        self.back()  # a pass that was interrupted left them
        given = [*arguments, *named.values()]
        if self._kept is None or not layer.training or not given:
            return
        input = named.get("input", given[0])
        own = {name: layer._buffers[name] for name in ("running_mean", "running_var", "num_batches_tracked")}
        if own["running_mean"] is None or own["running_var"] is None:
            return
        self._values = None if is_recomputation() else _values(input) * _ranks(layer)
        self._own = (layer, own, layer.momentum)
        layer._buffers.update({name: None if each is None else torch.zeros_like(each) for name, each in own.items()})
        layer.momentum = 1.0

    def after(self, layer: Any, arguments: Any, output: Any) -> None:
        """The hook after it, or after it has raised: without an output."""
        if self._kept is None or self._own is None:
            return
        own = self._own[1]
        mean, var = layer._buffers["running_mean"], layer._buffers["running_var"]
        self.back()
        if output is not None and self._values is not None:
            self._kept.of(layer, *own.values()).add(mean.detach(), var.detach(), 1, self._values)

    def back(self) -> None:
        """Gives the layer its own buffers."""
        if self._own is not None:
            layer, buffers, momentum = self._own
            layer._buffers.update(buffers)
            layer.momentum = momentum
            self._own = None


def remove(layer: torch.nn.Module) -> None:
    """Takes out of a layer what takes its batches. It can be done again, wherever it was interrupted."""
    every: list[list[dict[int, Any]]] = [
        [layer._forward_pre_hooks, layer._forward_pre_hooks_with_kwargs],
        [layer._forward_hooks, layer._forward_hooks_with_kwargs, layer._forward_hooks_always_called],
    ]
    for hooks, *flags in every:
        for key, hook in list(hooks.items()):
            owner = getattr(hook, "__self__", None)
            if isinstance(owner, Swap):
                owner.back()
                for each in (*flags, hooks):
                    each.pop(key, None)
    layer.__dict__.pop("_sink", None)


def _values(input: Tensor) -> int:
    """How many values a channel has."""
    return input.numel() // max(input.shape[1], 1)


def _ranks(layer: _NormBase) -> int:
    """Over how many ranks torch's layer takes its statistics, which are taken to have had as much as this one."""
    if isinstance(layer, torch.nn.SyncBatchNorm) and torch.distributed.is_initialized():
        return torch.distributed.get_world_size(layer.process_group)
    return 1
