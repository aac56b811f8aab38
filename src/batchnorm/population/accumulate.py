"""``accumulate_statistics``: the running statistics move once for several micro-batches."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from ..errors import ArgumentError
from ..nn._base import Norm
from ..nn.ghost import GhostBatchNorm1d
from ..ops.running import is_recomputation, update_running
from .layers import named, norms_with_statistics

__all__ = ["accumulate_statistics"]

_GHOST = GhostBatchNorm1d.__mro__[1]


@contextmanager
def accumulate_statistics(model: torch.nn.Module) -> Iterator[None]:
    r"""Within it the running statistics stand still; at its end they move once, by all batches together.

    .. math:: n = \sum_k n_k, \qquad \mu = \frac{1}{n} \sum_k n_k \mu_k, \qquad
              M = \sum_k \left((n_k - 1)\, s_k^2 + n_k (\mu_k - \mu)^2\right), \qquad
              \mathrm{running} = (1 - m) \cdot \mathrm{running} + m \cdot \left(\mu, \frac{M}{n - 1}\right)

    where call k of a layer in training mode has :math:`n_k` values a channel, mean :math:`\mu_k` and unbiased variance
    :math:`s_k^2`, and m is the layer's momentum: the buffers move as if the micro-batches had been one batch, and
    ``num_batches_tracked`` counts one. Each call still normalises by its own moments, so outputs and gradients are
    those without it. The moments are merged in float64 (Chan, Golub & LeVeque 1979), and nothing waits for the device.

    For gradient accumulation, and for every step that calls the model more than once (two halves of a GAN's batch, the
    two passes of SAM). Recomputation by activation checkpointing counts nothing; layers in evaluation mode are left
    alone; of a :class:`batchnorm.GhostBatchNorm1d` / ``2d`` / ``3d`` the parts are averaged, each counted alike. A
    batch with a NaN or an infinity is left out by this library's layers (``nonfinite="skip"``); in torch's own it gets
    into the statistics, as ever. On any exception nothing moves.

    Args:
        model: Any module. Batch norms are this library's, torch's, and subclasses, whose ``forward`` may use the
            running statistics only to move them.

    Raises:
        ArgumentError: Within itself, for a layer of both; ``torch.nn.DataParallel``, whose replicas see parts;
            a scripted model.

    Compiled code is interrupted at each norm of this library (with ``fullgraph=True`` torch raises its own error); with
    norms of torch's in the model it runs uncompiled.

    Example:
        >>> norm = torch.nn.BatchNorm1d(1, momentum=1.0)
        >>> with accumulate_statistics(norm):
        ...     for part in (torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0], [6.0]])):
        ...         _ = norm(part)
        ...     print(norm.running_mean)
        tensor([0.])
        >>> norm.running_mean, norm.running_var, int(norm.num_batches_tracked)
        (tensor([3.]), tensor([4.6667]), 1)
    """
    # Looking at their statistics also computes norms that still wait, before their batches would be taken.
    layers = norms_with_statistics(model)
    _check(model, layers)
    with _not_traced(layers), ExitStack() as stack:
        taken = []
        for _, layer in layers:
            taken.append(stack.enter_context(_taken(layer)))
        yield
        for _, layer in layers:
            _ = layer.running_mean  # a call that still waits for what follows is computed, while its batch is taken
        moves = [move for sink in taken for move in sink.moves()]
        _write(moves)


class _Buffers:
    """Running statistics that are to move, and the moments of the calls that would have moved them."""

    def __init__(self, mean: Tensor, var: Tensor, seen: Tensor | None) -> None:
        self.mean, self.var, self.seen = mean, var, seen
        dtype = torch.float32 if mean.device.type == "mps" else torch.float64  # the best that the device has
        self.count = torch.zeros((), dtype=dtype, device=mean.device)
        self.pooled = (torch.zeros(mean.shape, dtype=dtype, device=mean.device),) * 2

    def add(self, count: Tensor, mean: Tensor, m2: Tensor, spread: bool) -> None:
        """Another set: Chan's formula, or without the spread between means where those are no parts of one set."""
        own_mean, own_m2 = self.pooled
        some = count > 0
        total = self.count + count
        share = count / total.clamp(min=1)
        # Not a product with 0: what does not count may not be finite.
        delta = torch.where(some, mean - own_mean, 0.0)
        between = delta * delta * self.count * share if spread else torch.zeros_like(delta)
        self.pooled = (own_mean + delta * share, own_m2 + torch.where(some, m2, 0.0) + between)
        self.count = total


class _Sink:
    """Takes a layer's batches in place of its running buffers (:class:`batchnorm.nn._base.Sink`)."""

    def __init__(self, layer: _NormBase) -> None:
        self.layer = layer
        self.parts = isinstance(layer, _GHOST)  # the buffers are of parts; their number is what counts
        self.kept: dict[int, _Buffers] = {}
        self._last: tuple[_Buffers, Tensor, Tensor, Tensor, Tensor | int] | None = None

    def __deepcopy__(self, memo: Any) -> None:
        """A copy of the layer has its own running statistics to move."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()

    def buffers(
        self, input: Tensor, mask: Tensor | None, mean: Tensor, var: Tensor, seen: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Buffers for one call, which afterwards hold its mean, its unbiased variance, and 1 if it may count."""
        self.settle()
        kept = self.kept.setdefault(id(mean), _Buffers(mean, var, seen))
        # As precise as the input's statistics are, whatever the buffers'.
        dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
        scratch = torch.zeros((2, *mean.shape), dtype=dtype, device=mean.device)
        count = torch.zeros((), dtype=torch.int64, device=mean.device)
        values = mask.sum() if mask is not None else input.numel() // max(input.shape[1], 1)
        self._last = (kept, scratch[0], scratch[1], count, values)
        return scratch[0], scratch[1], count

    def counted(self, count: Tensor) -> None:
        """The last call's statistics are of ``count`` values, of other ranks' too."""
        if self._last is not None:
            self._last = (*self._last[:4], count)

    def found(self, mean: Tensor | None, var: Tensor | None) -> None:
        """The last call's statistics are these."""
        if self._last is not None and mean is not None and var is not None:
            kept, _, _, seen, values = self._last
            self._last = (kept, mean, var, torch.ones_like(seen), values)

    def forget(self) -> None:
        """The last call does not count."""
        self._last = None

    @torch.no_grad()
    def settle(self) -> None:
        """Merges what the last call left."""
        if self._last is None:
            return
        (kept, mean, var, seen, values), self._last = self._last, None
        parts = seen.to(kept.count)
        weight = parts if self.parts else torch.as_tensor(values).to(kept.count) * (parts > 0)
        m2 = var.to(kept.count) * (weight if self.parts else (weight - 1).clamp(min=0))
        kept.add(weight, mean.to(kept.count), m2, spread=not self.parts)

    def moves(self) -> list[tuple[_NormBase, _Buffers, Tensor, Tensor, Tensor]]:
        """What is to be written: count, mean and unbiased variance."""
        self.settle()
        found = []
        for kept in self.kept.values():
            mean, m2 = kept.pooled
            if self.parts:
                # Variances of parts have their Bessel's correction, and a single one of them is as good as a batch.
                found.append((self.layer, kept, kept.count * 2, mean, m2 / kept.count.clamp(min=1)))
            else:
                found.append((self.layer, kept, kept.count, mean, m2 / (kept.count - 1).clamp(min=1)))
        return found


def _write(moves: list[tuple[_NormBase, _Buffers, Tensor, Tensor, Tensor]]) -> None:
    buffers = [buffer for _, kept, *_ in moves for buffer in (kept.mean, kept.var, kept.seen) if buffer is not None]
    before = [buffer.clone() for buffer in buffers]
    try:
        for move in moves:
            _move(*move)
    except BaseException:
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)
        raise


@torch.no_grad()
def _move(layer: _NormBase, kept: _Buffers, count: Tensor, mean: Tensor, unbiased: Tensor) -> None:
    momentum: Any = layer.momentum
    if momentum is None:
        momentum = 0.0 if kept.seen is None else 1.0 / (kept.seen + 1).to(mean.dtype)
    skip = isinstance(layer, Norm) and layer.nonfinite == "skip"
    var = unbiased * ((count - 1).clamp(min=0) / count.clamp(min=1))
    update_running(kept.mean, kept.var, kept.seen, count, mean, var, momentum, skip)


@contextmanager
def _taken(layer: _NormBase) -> Iterator[_Sink]:
    sink = _Sink(layer)
    if isinstance(layer, Norm):
        layer._sink = sink
        try:
            yield sink
        finally:
            layer.__dict__.pop("_sink", None)
        return
    swap = _Swap(layer, sink)
    before = layer.register_forward_pre_hook(swap.before)
    after = layer.register_forward_hook(swap.after, prepend=True, always_call=True)
    try:
        yield sink
    finally:
        before.remove()
        after.remove()
        swap.back()


class _Swap:
    """For a layer that has no place for a sink: other buffers while its forward pass runs."""

    def __init__(self, layer: _NormBase, sink: _Sink) -> None:
        self.layer = layer
        self.sink: _Sink | None = sink  # None in a copy
        self._own: tuple[dict[str, Tensor | None], float | None] | None = None

    def before(self, layer: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
        self.back()  # a pass that was interrupted left them
        own = self.layer
        if self.sink is None or not own.training or not arguments:
            return
        mean, var, seen = own._buffers["running_mean"], own._buffers["running_var"], own._buffers["num_batches_tracked"]
        if mean is None or var is None:
            return
        scratch_mean, scratch_var, count = self.sink.buffers(arguments[0], None, mean, var, seen)
        if is_recomputation():
            self.sink.forget()
        elif isinstance(own, torch.nn.SyncBatchNorm) and torch.distributed.is_initialized():
            # Its statistics are of all ranks, which are taken to have had as much as this one.
            ranks = torch.distributed.get_world_size(own.process_group)
            self.sink.counted(torch.tensor(ranks * (arguments[0].numel() // max(arguments[0].shape[1], 1))))
        self._own = ({"running_mean": mean, "running_var": var, "num_batches_tracked": seen}, own.momentum)
        own._buffers.update(
            running_mean=scratch_mean.to(mean.dtype),
            running_var=scratch_var.to(var.dtype),
            num_batches_tracked=None if seen is None else count,
        )
        own.momentum = 1.0

    def after(self, layer: torch.nn.Module, arguments: Any, output: Any) -> None:
        if self._own is None or self.sink is None:
            return
        moved = self.layer._buffers
        if output is None:  # it raised
            self.sink.forget()
        else:
            self.sink.found(moved["running_mean"], moved["running_var"])
        self.back()

    def back(self) -> None:
        if self._own is not None:
            buffers, momentum = self._own
            self.layer._buffers.update(buffers)
            self.layer.momentum = momentum
            self._own = None


def _check(model: torch.nn.Module, layers: list[tuple[str, _NormBase]]) -> None:
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.DataParallel | torch.jit.ScriptModule):
            raise ArgumentError(
                f"the batches of {named(path, module)} cannot be watched.",
                "use DistributedDataParallel in place of DataParallel; do this before torch.jit.script.",
            )
    for path, layer in layers:
        hooks = [getattr(hook, "__self__", None) for hook in layer._forward_pre_hooks.values()]
        if "_sink" in layer.__dict__ or any(isinstance(each, _Swap) and each.sink for each in hooks):
            raise ArgumentError(
                f"the statistics of {named(path, layer)} are accumulated already.",
                "one accumulate_statistics(model) for a step is enough.",
            )


def _not_traced(layers: list[tuple[str, _NormBase]]) -> AbstractContextManager[Any]:
    """Keeps the compiler out of this: where there is one.

    Traced, a sink is compiled anew in every step, which has a new one (seen: the limit of eight recompilations is
    reached in the third step). Hooks that are added after compiling may not be called (seen with fullgraph=True):
    layers that need them run uncompiled.
    """
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    if not hasattr(_Sink.buffers, "_torchdynamo_disable"):
        for name in ("counted", "buffers"):
            setattr(_Sink, name, torch.compiler.disable(getattr(_Sink, name)))
    hooked = any(not isinstance(layer, Norm) for _, layer in layers)
    return torch.compiler.set_stance("force_eager") if hooked else nullcontext()
