"""``SyncBatchNorm``: batch normalization over the samples of all ranks."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..activation import ActivationLike
from ..functional import Nonfinite, batch_norm, sync_batch_norm
from ..ops.synced_group import Group
from ._variant import Variant, without_activation

__all__ = ["SyncBatchNorm"]


@without_activation(torch.nn.modules.batchnorm._BatchNorm)
class SyncBatchNorm(Variant):
    r"""Batch normalization of (N, C, \*spatial) input by the moments of all ranks of a process group.

    .. math:: y = \mathrm{activation}\Big(\frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} \cdot \gamma + \beta
        + \mathrm{residual}\Big)

    with mean and biased variance of the samples of all ranks (:func:`batchnorm.functional.sync_batch_norm` has the
    formulas). On CPU and GPU, by whatever backend the group has for the device; one collective in the forward pass and
    one in the backward pass. Parameters, buffers and ``state_dict`` are those of ``torch.nn.SyncBatchNorm``; it is no
    subclass of that, which DDP refuses on CPU. Without an activation it is a torch ``_BatchNorm``.

    Evaluation, a group of one process and no process group at all are the plain layer. As in torch, evaluation without
    running statistics goes by the rank's own batch.

    A layer remembers its group by name: copies have the same group; one that was pickled has to be given a group anew
    where it had been given one, and says so when it is asked to synchronise. ``process_group=None`` means the default
    group of whatever process it is in.

    Args:
        num_features: C, the size of dimension 1.
        eps: Added to the variance, inside the root.
        momentum: The weight of the new batch in the running buffers; ``None`` for the average of all batches.
        affine: Whether gamma and beta exist.
        track_running_stats: Whether the running buffers exist.
        device: Of parameters and buffers.
        dtype: Of parameters and buffers. Half-precision input takes float32 ones.
        process_group: Over which to synchronise: of this rank; None for the default group.
        activation: A name, an :class:`batchnorm.Activation`, a torch activation module or None.
        bias: ``False`` leaves out beta.
        nonfinite: ``"skip"`` or ``"propagate"``; see :class:`BatchNorm1d`.

    Attributes:
        process_group: As given; may be set.

    Shape:
        - input: (N, C, \*spatial) of 2 to 5 dimensions; N may be 0, and sizes but C may differ between ranks.
        - residual: As input. mask: bool, (N, \*spatial), True where valid.

    Raises:
        ShapeError: Other shapes.
        ArgumentError: With more than one rank: higher derivatives, forward mode, ``torch.func``; a group that this
            rank is not in, or that was lost on the way through a file.

    Example:
        >>> layer = SyncBatchNorm(8, activation="relu")
        >>> layer(torch.randn(4, 8, 5, 5)).shape  # no process group here: the plain layer
        torch.Size([4, 8, 5, 5])
        >>> isinstance(SyncBatchNorm(8), torch.nn.modules.batchnorm._BatchNorm)
        True
    """

    dims = (2, 3, 4, 5)
    _group: Group | None = None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        process_group: dist.ProcessGroup | None = None,
        activation: ActivationLike = None,
        bias: bool = True,
        nonfinite: Nonfinite = "skip",
    ) -> None:
        super().__init__(
            num_features,
            eps,
            momentum,
            affine,
            track_running_stats,
            device,
            dtype,
            activation=activation,
            bias=bias,
            nonfinite=nonfinite,
        )
        self.process_group = process_group

    @property
    def process_group(self) -> dist.ProcessGroup | None:
        """Over which the layer synchronises; None for the default group."""
        return None if self._group is None else self._group.resolve()

    @process_group.setter
    def process_group(self, group: dist.ProcessGroup | None) -> None:
        self._group = None if group is None else Group.of(group)

    def _batch_norm(self, *arguments: Any, **others: Any) -> Tensor:
        if not self.training:  # by the batch too, without running statistics: each rank by its own, as in torch
            return batch_norm(*arguments, **others)
        counted = None if self._sink is None else self._sink.counted
        return sync_batch_norm(*arguments, **others, process_group=self._group, counted=counted)

    def extra_repr(self) -> str:
        """As the plain layer's, with the group where one was given."""
        shown = super().extra_repr()
        return shown if self._group is None else f"{shown}, process_group={self._group!r}"
