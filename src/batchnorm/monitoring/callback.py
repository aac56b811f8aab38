"""What the callbacks for Lightning's two packages share."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from ..errors import ArgumentError
from .monitor import OnTrouble, Watcher, check_counts
from .record import Record
from .writing import Writer, scalars, write

__all__ = ["Watching"]


class Watching:
    """Writes to the trainer's loggers what the batch norms of a model do, every so many steps of the optimizer.

    A logger whose ``experiment`` has ``add_scalar`` and ``add_histogram`` (``TensorBoardLogger``) gets what
    :func:`batchnorm.monitor` writes; others get the same numbers by ``log_metrics``. The first training batch of an
    observed step is looked at, up to its backward pass; other batches are not touched.

    Args:
        every: Steps from one that is observed to the next; the first one is.
        on_trouble: Called with a list of :class:`batchnorm.monitoring.Trouble` when some appear that were not there in
            the record before.

    Raises:
        ArgumentError: ``every`` below 1, or not whole; when training begins, a model without batch norms, or no logger
            and no ``on_trouble``.
    """

    def __init__(self, every: int = 100, *, on_trouble: OnTrouble | None = None) -> None:
        check_counts(every=every)
        super().__init__()
        self._every, self._on_trouble = every, on_trouble
        self._watcher: Watcher | None = None
        self._last: int | None = None
        self._loggers: list[Any] = []

    def on_train_start(self, trainer: Any, pl_module: torch.nn.Module) -> None:
        """Looks for loggers and norms."""
        self._loggers, self._last = list(trainer.loggers), None
        if not self._loggers and self._on_trouble is None:
            raise ArgumentError("the trainer has no logger to write to.", "Trainer(logger=…), or give on_trouble=.")
        self._watcher = Watcher(pl_module, self._log, self._on_trouble)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Begins to observe, if it is time."""
        step = trainer.global_step
        # Not by the remainder: with several optimizers a batch is several steps.
        if self._watcher is not None and (self._last is None or step - self._last >= self._every):
            self._last = step
            self._watcher.begin(step, trainer.is_global_zero)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        """The forward pass is over."""
        if self._watcher is not None:
            self._watcher.end()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Writes what was seen."""
        if self._watcher is not None:
            self._watcher.hand_on()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """The model is as it was, and what was seen of a step is written: it may tell why."""
        watcher, loggers = self._watcher, self._loggers
        self._stop()
        if watcher is None:
            return
        self._loggers = loggers
        try:
            watcher.hand_on()
        except Exception as other:
            warnings.warn(f"the last record was not written: {type(other).__name__}: {other}", stacklevel=2)
        finally:
            self._loggers = []

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """The model is as it was."""
        self._stop()

    def _stop(self) -> None:
        if self._watcher is not None:
            self._watcher.end()
        self._watcher, self._loggers = None, []

    def _log(self, record: Record) -> None:
        for logger in self._loggers:
            if isinstance(logger.experiment, Writer):
                write(record, logger.experiment)
            else:
                logger.log_metrics(dict(scalars(record)), step=record.step)
