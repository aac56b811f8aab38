"""One observed training step: hooks on the norms, there for that step alone, and what they see."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from ..nn import FusingBatchNorm1d, FusingBatchNorm2d, FusingBatchNorm3d
from ..nn._base import Norm, is_batch_norm
from ..ops.moments import merge_moments
from .hook import Hook

Array: TypeAlias = "np.ndarray[Any, Any]"

__all__ = ["Observation", "Seen", "norms_of"]

# These wait for what follows them only while they have no forward hook: to be computed as ever they get none.
_WAITING = (FusingBatchNorm1d, FusingBatchNorm2d, FusingBatchNorm3d)


@dataclass(eq=False)
class Seen:
    """What one layer did in the step, still where it was computed.

    Attributes:
        path: In the model.
        layer: The norm.
        samples: Of the input, those of all calls.
        moments: Count, mean and biased variance of each call's input.
        state: ``weight``, ``bias``, ``running_mean``, ``running_var`` and ``num_batches_tracked``, those that are
            there, before the first call.
        squares: The sums of the squares of the gradients that came back, ``"output"`` and ``"input"``, and of how many
            values each is.
    """

    path: str
    layer: _NormBase
    samples: int = 0
    moments: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)
    state: dict[str, Tensor] = field(default_factory=dict)
    squares: dict[str, list[tuple[Tensor, int]]] = field(default_factory=dict)


class Observation:
    """Watches a model's norms from :meth:`start` to :meth:`stop`, in the thread that started it alone.

    Nothing waits for the device before :meth:`numbers`.

    Args:
        model: The model, unwrapped.
        step: The step's number.
    """

    def __init__(self, model: torch.nn.Module, step: int) -> None:
        self.step = step
        self.seen: dict[str, Seen] = {}
        self._hooks = [(layer, *self._hooks_of(Seen(path, layer))) for path, layer in norms_of(model)]
        self._on_tensors: list[Any] = []
        self._thread: int | None = None

    def start(self) -> None:
        """Puts the hooks in, behind those that are there, which may change the input."""
        self._thread = threading.get_ident()
        for layer, before, after in self._hooks:
            layer.register_forward_pre_hook(before, with_kwargs=True)
            if not isinstance(layer, _WAITING):
                layer.register_forward_hook(after, prepend=True)

    def stop(self) -> None:
        """Takes the hooks out. It can be done again, wherever it or :meth:`start` was interrupted."""
        for layer, *hooks in self._hooks:
            # By the hook and not by its handle, which an interrupt may have kept from us.
            for own, flags in (
                (layer._forward_pre_hooks, layer._forward_pre_hooks_with_kwargs),
                (layer._forward_hooks, layer._forward_hooks_with_kwargs),
            ):
                for key in [key for key, hook in own.items() if any(hook is each for each in hooks)]:
                    flags.pop(key, None)
                    own.pop(key, None)

    def _hooks_of(self, seen: Seen) -> tuple[Hook, Hook]:
        names = _parameters(type(seen.layer).forward)

        # Without keywords: when they are taken out while another thread is between finding this hook and calling it.
        def before(layer: _NormBase, arguments: tuple[Any, ...], keywords: dict[str, Any] | None = None) -> None:
            if keywords is None or threading.get_ident() != self._thread:
                return
            if torch._C._are_functorch_transforms_active():
                return
            given = {**dict(zip(names, arguments, strict=False)), **keywords}
            input = arguments[0] if arguments else next(iter(keywords.values()), None)
            # Other classes may mean something else by the word.
            mask = given.get("mask") if isinstance(layer, Norm) else None
            if isinstance(input, Tensor) and input.dim() > 1 and input.shape[1] == layer.num_features and input.numel():
                self._enter(seen, layer, input, mask)

        def after(layer: _NormBase, arguments: tuple[Any, ...], output: Any) -> None:
            ours = threading.get_ident() == self._thread
            if ours and seen.path in self.seen and isinstance(output, Tensor):
                self._differentiate(seen, "output", output)

        return Hook(before), Hook(after)

    def _enter(self, seen: Seen, layer: _NormBase, input: Tensor, mask: Tensor | None) -> None:
        if mask is not None and mask.dim() == input.dim():
            mask = mask.squeeze(1)
        # Of a norm's output that waits to be computed, this computes it, as the layer itself would.
        seen.moments.append(torch.ops.batchnorm.moments(input.detach(), mask))
        seen.samples += input.shape[0]
        if seen.path not in self.seen:
            self.seen[seen.path] = seen
            for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
                tensor = getattr(layer, name, None)
                if isinstance(tensor, Tensor):
                    seen.state[name] = tensor.detach().clone()
        self._differentiate(seen, "input", input)

    def _differentiate(self, seen: Seen, name: str, tensor: Tensor) -> None:
        """Has the square of a tensor's gradient added when it comes."""
        if not tensor.requires_grad:
            return
        squares = seen.squares.setdefault(name, [])

        def add(gradient: Tensor) -> None:
            # float64: the square of 1e-23 is nothing in float32.
            dtype = torch.float32 if gradient.device.type == "mps" else torch.float64
            norm = torch.linalg.vector_norm(gradient.detach(), dtype=dtype)
            squares.append((norm.square(), gradient.numel()))

        self._on_tensors.append(tensor.register_hook(add))

    def numbers(self) -> Iterator[tuple[Seen, Numbers]]:
        """What was seen, brought here: all of it at once, for each time waits for the device."""
        for handle in self._on_tensors:
            handle.remove()  # of a leaf, which outlives its graph
        self._on_tensors = []
        tensors: list[Tensor] = []
        # Copied, so that both loops see the same: a backward pass in another thread adds to them.
        all_seen = [
            replace(
                seen,
                moments=list(seen.moments),
                squares={name: list(squares) for name, squares in list(seen.squares.items())},
            )
            for seen in list(self.seen.values())
        ]
        for seen in all_seen:
            for call in seen.moments:
                tensors += call
            tensors += seen.state.values()
            tensors += [square for squares in seen.squares.values() for square, _ in squares]
        arrays = iter(_brought(tensors))
        for seen in all_seen:
            moments = [(next(arrays), next(arrays), next(arrays)) for _ in seen.moments]
            state = {name: next(arrays) for name in seen.state}
            rms = {}
            for name, squares in seen.squares.items():
                total = sum(float(next(arrays)[0]) for _ in squares)
                if squares:
                    rms[name] = float(np.sqrt(total / sum(count for _, count in squares)))
            yield seen, Numbers(*_merged(moments), state, rms)


@cache
def _parameters(forward: Any) -> list[str]:
    return list(inspect.signature(forward).parameters)[1:]


@dataclass(frozen=True, eq=False)
class Numbers:
    """Of one layer, float64: how many values a channel had, their mean, biased variance, ``Seen.state``, gradients."""

    count: float
    mean: Array
    var: Array
    state: dict[str, Array]
    gradient: dict[str, float]


def norms_of(model: torch.nn.Module) -> list[tuple[str, _NormBase]]:
    """Paths and batch norms; what ``torch.compile`` put around modules inside is not in the path."""
    return [(path.replace("_orig_mod.", ""), module) for path, module in model.named_modules() if is_batch_norm(module)]


def _brought(tensors: list[Tensor]) -> list[Array]:
    """Each as float64, flat, by one copy for each device and dtype."""
    found: dict[int, Array] = {}
    groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for place, tensor in enumerate(tensors):
        groups.setdefault((tensor.device, tensor.dtype), []).append(place)
    for places in groups.values():
        flat = [each if each.dim() == 1 else each.reshape(-1) for each in (tensors[place] for place in places)]
        every = torch.cat(flat).cpu().to(torch.float64).numpy()
        start = 0
        for place, part in zip(places, flat, strict=True):
            found[place] = every[start : start + len(part)]
            start += len(part)
    return [found[place] for place in range(len(tensors))]


def _merged(calls: Sequence[tuple[Array, ...]]) -> tuple[float, Array, Array]:
    count, mean, var = calls[0]
    if len(calls) > 1:
        merged = tuple(torch.from_numpy(part) for part in calls[0])
        for call in calls[1:]:
            merged = merge_moments(*merged, *(torch.from_numpy(part) for part in call))
        count, mean, var = (part.numpy() for part in merged)
    return float(count.reshape(-1)[0]), mean, var
