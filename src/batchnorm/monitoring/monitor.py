"""``monitor``: counts training steps, and has every so many of them observed and written."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Sequence
from numbers import Integral
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist

from ..errors import ArgumentError
from ..ops.running import is_recomputation
from ..population.engine import not_compiled, unwrapped
from ..population.layers import named
from .hook import Hook
from .observation import Observation, norms_of
from .record import Trouble
from .values import record
from .writing import Sink, Writer, sink_of

__all__ = ["Monitor", "OnTrouble", "Watcher", "check_counts", "monitor"]

OnTrouble = Callable[[Sequence[Trouble]], object]


def monitor(
    model: torch.nn.Module,
    writer: Writer | Sink,
    every: int = 100,
    *,
    on_trouble: OnTrouble | None = None,
    passes_per_step: int = 1,
    all_ranks: bool = False,
) -> Monitor:
    """Writes what the batch norms of a model do, every so many training steps, from now on.

    A step is a forward pass of the model in training mode with gradients; evaluation and what activation checkpointing
    computes again do not count, nor does, while the thread of the first step lives, what other threads run.
    In an observed step each norm's input is compared with the running statistics, and the record is handed on when the
    next step begins, or at the end. In all other steps nothing is looked at, and nothing waits for the device. The
    results of the training are those without it.

    Args:
        model: What the training loop calls: inside ``torch.compile`` or ``DistributedDataParallel`` calls are not seen.
        writer: TensorBoard's ``SummaryWriter``, an object with its ``add_scalar`` and ``add_histogram``, or a function
            that takes a :class:`batchnorm.monitoring.Record`.
        every: Steps from one that is observed to the next; the first one is.
        on_trouble: Called with a list of :class:`batchnorm.monitoring.Trouble` when some appear that were not there in
            the record before.
        passes_per_step: Forward passes a step, where gradients are accumulated or the model is called twice; the first
            one is observed.
        all_ranks: Under ``torch.distributed`` every process writes, not the first alone; give each its own writer.

    Returns:
        A handle, to be closed: a context manager. Its ``step`` may be set, to go on counting where a checkpoint was.

    Raises:
        ArgumentError: A model without batch norms, a scripted one, ``torch.nn.DataParallel``; a writer that is none;
            numbers of steps or passes that are not whole, or below 1.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
        >>> with monitor(model, lambda record: print(record.step, *record.layers), every=2):
        ...     for _ in range(4):
        ...         model(torch.randn(8, 2)).sum().backward()
        0 1
        2 1
    """
    check_counts(every=every, passes_per_step=passes_per_step)
    watcher = Watcher(model, sink_of(writer), on_trouble)
    return Monitor(model, watcher, writer, every, passes_per_step, all_ranks)


def check_counts(**counts: int) -> None:
    """Raises :class:`ArgumentError` where one of these arguments is no whole number, or below 1."""
    for name, count in counts.items():
        if not isinstance(count, Integral) or count < 1:
            raise ArgumentError(f"{name}={count!r}.", "give a whole number, at least 1.")


class Watcher:
    """Observes single steps, and hands the records on. Who uses it says when.

    Args:
        model: The model.
        sink: What takes the records.
        on_trouble: As for :func:`monitor`.

    Attributes:
        watching: Whether it is between :meth:`begin` and :meth:`end`.
    """

    def __init__(self, model: torch.nn.Module, sink: Sink, on_trouble: OnTrouble | None) -> None:
        _check(model)
        self._model = unwrapped(model)
        self._sink, self._on_trouble = sink, on_trouble
        self._troubles: set[tuple[str, str]] = set()
        self._observation: Observation | None = None
        self._compiled: Any = None
        self.watching = False

    def begin(self, step: int, writes: bool = True) -> None:
        """Observe, until :meth:`end`; only compiled code is interrupted where another process writes."""
        self.end()
        self.watching = True
        # Compiled code has no place for hooks, and would be compiled anew for them. On all processes alike: collective
        # operations must not differ.
        self._compiled = not_compiled()
        if writes:
            self._observation = Observation(self._model, step)
            self._observation.start()

    def end(self) -> None:
        """The forward pass is over; also twice, and after an interrupt."""
        if self.watching:
            if self._observation is not None:
                self._observation.stop()
            if self._compiled is not None:
                self._compiled.__exit__(None, None, None)
            self._compiled = None
            self.watching = False

    def hand_on(self) -> None:
        """Hands the record of the last observed step on, if that was not done."""
        self.end()
        observation, self._observation = self._observation, None
        if observation is None:
            return
        if not observation.seen:
            warnings.warn(
                f"no batch norm was called, as a module, with any values in step {observation.step}: "
                "nothing is written of it.",
                stacklevel=3,
            )
            return
        made = record(observation)
        self._sink(made)
        before, self._troubles = self._troubles, {(each.layer, each.name) for each in made.troubles}
        new = [each for each in made.troubles if (each.layer, each.name) not in before]
        if new and self._on_trouble is not None:
            self._on_trouble(new)


class Monitor:
    """What :func:`monitor` gives: its hooks are in the model until it is closed."""

    def __init__(
        self,
        model: torch.nn.Module,
        watcher: Watcher,
        writer: object,
        every: int,
        passes_per_step: int,
        all_ranks: bool,
    ) -> None:
        self._model, self._inner, self._watcher, self._writer = model, unwrapped(model), watcher, writer
        self._every, self._passes_per_step, self._all_ranks = every, passes_per_step, all_ranks
        self._step = self._passes = 0
        self._inside = self._counted = self._closed = False
        self._thread: threading.Thread | None = None
        self._hooks = (Hook(self._before), Hook(self._after))
        self._compiled: Callable[..., Any] | None = None
        try:
            model.register_forward_pre_hook(self._hooks[0])
            # The last one in is the first one out: another monitor's stop must not come between.
            model.register_forward_hook(self._hooks[1], prepend=True, always_call=True)
            if model._compiled_call_impl is not None:
                self._around_compiled(model._compiled_call_impl)
        except BaseException:
            self._remove()
            raise

    @property
    def step(self) -> int:
        """The number of the next step."""
        return self._step

    @step.setter
    def step(self, number: int) -> None:
        self._step, self._passes = number, 0

    def flush(self) -> None:
        """Hands on what has been observed, and has the writer, if it can, put it on disk."""
        self._watcher.hand_on()
        flush = getattr(self._writer, "flush", None)
        if flush is not None:
            flush()

    def close(self) -> None:
        """The model is as it was before; what has been observed is handed on. Also twice."""
        self._remove()
        self.flush()

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._leave(kind)
        except BaseException:
            self._remove()  # interrupted: the whole of it again
            raise

    def _leave(self, kind: type[BaseException] | None) -> None:
        if kind is None:
            counted, self._counted = self._counted, True
            self.close()
            if not counted:
                warnings.warn(
                    "the monitored model ran no training step: give monitor() what the loop calls (the compiled model, "
                    "the DistributedDataParallel).",
                    stacklevel=3,
                )
            return
        try:
            self.close()
        except Exception as other:
            warnings.warn(f"the last record was not written: {type(other).__name__}: {other}", stacklevel=3)

    def _remove(self) -> None:
        self._closed = True
        self._watcher.end()
        model = self._model
        for hooks, flags in (
            (model._forward_pre_hooks, (model._forward_pre_hooks_with_kwargs,)),
            (model._forward_hooks, (model._forward_hooks_with_kwargs, model._forward_hooks_always_called)),
        ):
            for key in [key for key, hook in hooks.items() if any(hook is own for own in self._hooks)]:
                for each in (*flags, hooks):
                    each.pop(key, None)
        if self._compiled is not None and model._compiled_call_impl is self._compiled:
            model._compiled_call_impl = self._compiled.__wrapped__  # type: ignore[attr-defined]
        self._compiled = None

    def _before(self, module: torch.nn.Module, arguments: Any) -> None:
        if self._inside or not self._is_ours():
            return
        if self._watcher.watching:
            self._watcher.end()  # an interrupt, past which no hook is called, has left it so
        if self._inner.training and torch.is_grad_enabled() and not is_recomputation():
            self._begin()

    def _is_ours(self) -> bool:
        """Whether it is open, and no other thread counts the steps: of passes at the same time one is observed."""
        return not self._closed and (
            self._thread is None or self._thread is threading.current_thread() or not self._thread.is_alive()
        )

    def _begin(self) -> None:
        self._counted = True
        self._thread = threading.current_thread()
        first, step = self._passes == 0, self._step
        self._passes = (self._passes + 1) % self._passes_per_step
        self._step += self._passes == 0
        if first:
            self._watcher.hand_on()
            # Who took the record may have closed this.
            if step % self._every == 0 and not self._closed:
                self._watcher.begin(step, self._all_ranks or is_first_rank())

    def _after(self, module: torch.nn.Module, arguments: Any, output: Any) -> None:
        # What was compiled in place looks once more whether it may run uncompiled when it is done.
        if self._watcher.watching and not self._inside and self._is_ours():
            self._watcher.end()

    def _around_compiled(self, call: Callable[..., Any]) -> None:
        """After ``model.compile()`` the hooks are in compiled code, where they do nothing: this stands around it."""

        def counted(*arguments: Any, **keywords: Any) -> Any:
            if not self._is_ours():
                return call(*arguments, **keywords)
            self._before(self._model, arguments)
            self._inside = True
            try:
                return call(*arguments, **keywords)
            finally:
                self._inside = False
                self._watcher.end()

        counted.__wrapped__ = call  # type: ignore[attr-defined]
        self._compiled = self._model._compiled_call_impl = counted


def is_first_rank() -> bool:
    """Whether this is the process that writes; also where there is one alone."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def _check(model: torch.nn.Module) -> None:
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.DataParallel | torch.jit.ScriptModule):
            raise ArgumentError(
                f"the norms of {named(path, module)} cannot be watched.",
                "use DistributedDataParallel in place of DataParallel; do this before torch.jit.script.",
            )
    norms = norms_of(model)
    if not norms:
        raise ArgumentError("the model has no batch norm.", "is this the right model?")
    if norms[0][1] is model:
        raise ArgumentError("the model is a batch norm itself.", "put it into a torch.nn.Sequential.")
