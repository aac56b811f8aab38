"""``accumulate_statistics``: the running statistics move once for several micro-batches."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from ..errors import ArgumentError
from ..nn._base import Norm
from .layers import named, norms_with_statistics
from .sinks import Kept, Sink, Swap, remove

__all__ = ["accumulate_statistics"]


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
    Layers that share their buffers (a model beside what :func:`batchnorm.convert` made of it) move them once, together.

    For gradient accumulation, and for every step that calls the model more than once (two halves of a GAN's batch, the
    two passes of SAM). Recomputation by activation checkpointing counts nothing (of torch's norms, where the backward
    pass runs within it too); layers in evaluation mode are left alone; of a :class:`batchnorm.GhostBatchNorm1d` /
    ``2d`` / ``3d`` the parts are averaged, each counted alike. A batch with a NaN or an infinity is left out by this
    library's layers (``nonfinite="skip"``); in torch's own it gets into the statistics, as ever. On any exception
    nothing moves.

    Args:
        model: Any module. Batch norms are this library's, torch's, and subclasses, whose ``forward`` may use the
            running statistics only to move them. Those that are not this library's are seen when they are called:
            ``norm(x)``, never ``norm.forward(x)``.

    Raises:
        ArgumentError: Within itself, for a layer of both; ``torch.nn.DataParallel``, whose replicas see parts;
            a scripted model; at its end for buffers that were replaced meanwhile (``model.double()``).

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
    accumulation = _Accumulation(layers)
    # Nothing runs outside, and no `finally` comes after the statistics have moved: an interrupt may come at any line.
    try:
        try:
            with _not_traced(layers):
                accumulation.begin()
                yield
                accumulation.move()
                accumulation.end()
        except BaseException:
            accumulation.undo()
            raise
    except BaseException:
        accumulation.undo()  # again, for an interrupt that came while it was undone
        raise


class _Accumulation:
    """What one ``accumulate_statistics`` has put into the layers, and takes out of them again."""

    def __init__(self, layers: list[tuple[str, _NormBase]]) -> None:
        self.layers = layers
        self.kept = Kept(self)
        self._owned = [list(layer.buffers()) for _, layer in layers]
        self._before: list[tuple[Tensor, Tensor]] = []

    def begin(self) -> None:
        """From now on batches are taken."""
        for _, layer in self.layers:
            if isinstance(layer, Norm):
                layer._sink = Sink(layer, self.kept)
            else:
                swap = Swap(self.kept)
                layer.register_forward_pre_hook(swap.before, with_kwargs=True)
                layer.register_forward_hook(swap.after, prepend=True, always_call=True)

    def move(self) -> None:
        """Moves the running statistics by what was taken."""
        for _, layer in self.layers:
            _ = layer.running_mean  # a call that still waits for what follows is computed, while its batch is taken
        self._check_buffers()
        every = self.kept.all()
        self._before = [(buffer, buffer.clone()) for calls in every for buffer in calls.buffers()]
        for calls in every:
            calls.move()

    def end(self) -> None:
        """From now on batches move the running statistics again. Whatever came of it before, it can be done again."""
        self.kept.open = False
        for _, layer in self.layers:
            remove(layer)

    def undo(self) -> None:
        """As before the beginning, but for what the calls returned. It can be done again."""
        for _, layer in self.layers:
            if layer.__dict__.get("_sink") is not None:
                with suppress(Exception):
                    _ = layer.running_mean  # or it would move the statistics later, when its output is used
        _put_back(self._before)
        self.end()

    def _check_buffers(self) -> None:
        replaced = [
            layer
            for (_, layer), owned in zip(self.layers, self._owned, strict=True)
            if not all(_is_in(buffer, layer) for buffer in owned)
        ]
        for path, layer in self.layers:
            if layer in replaced and any(
                calls.layer is layer and not _is_in(calls.mean, layer) for calls in self.kept.all()
            ):
                raise ArgumentError(
                    f"the running statistics of {named(path, layer)} were replaced while they were accumulated.",
                    "call model.double(), model.to(…) and whatever else gives it other buffers before it or after it.",
                )


@torch.no_grad()  # not a block: an interrupt before its end would leave the mode
def _put_back(buffers: list[tuple[Tensor, Tensor]]) -> None:
    for buffer, value in buffers:
        buffer.copy_(value)


def _is_in(buffer: Tensor, layer: torch.nn.Module) -> bool:
    return any(buffer is own for own in layer.buffers())


def _check(model: torch.nn.Module, layers: list[tuple[str, _NormBase]]) -> None:
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.DataParallel | torch.jit.ScriptModule):
            raise ArgumentError(
                f"the batches of {named(path, module)} cannot be watched.",
                "use DistributedDataParallel in place of DataParallel; do this before torch.jit.script.",
            )
    for path, layer in layers:
        hooks = [getattr(hook, "__self__", None) for hook in layer._forward_pre_hooks.values()]
        if any(isinstance(each, Sink | Swap) and each.is_in_use() for each in (layer.__dict__.get("_sink"), *hooks)):
            raise ArgumentError(
                f"the statistics of {named(path, layer)} are accumulated already.",
                "one accumulate_statistics(model) for a step is enough.",
            )
    for _, layer in layers:
        remove(layer)  # what a copy has of its original, or two interrupts in a row have left


def _not_traced(layers: list[tuple[str, _NormBase]]) -> AbstractContextManager[Any]:
    """Keeps the compiler out of this: where there is one.

    Traced, a sink is compiled anew in every step, which has a new one (seen: the limit of eight recompilations is
    reached in the third step). Hooks that are added after compiling may not be called (seen with fullgraph=True):
    layers that need them run uncompiled.
    """
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    if not hasattr(Sink.buffers, "_torchdynamo_disable"):
        for name in ("counted", "buffers"):
            setattr(Sink, name, torch.compiler.disable(getattr(Sink, name)))
    hooked = any(not isinstance(layer, Norm) for _, layer in layers)
    return torch.compiler.set_stance("force_eager") if hooked else nullcontext()
