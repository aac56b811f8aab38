"""``BatchNormMonitor`` for ``lightning.pytorch``; for ``pytorch_lightning`` see the module of that name."""

from __future__ import annotations

from lightning.pytorch import Callback

from .callback import Watching

__all__ = ["BatchNormMonitor"]


class BatchNormMonitor(Watching, Callback):
    """See :class:`batchnorm.monitoring.callback.Watching`, which it is made of.

    Args:
        every: Steps from one that is observed to the next; the first one is.
        on_trouble: Called with a list of :class:`batchnorm.monitoring.Trouble` when some appear.

    Example:
        >>> callback = BatchNormMonitor(every=50)  # Trainer(callbacks=[callback])
    """
