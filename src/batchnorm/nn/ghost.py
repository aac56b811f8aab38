"""``GhostBatchNorm1d`` / ``2d`` / ``3d``: a large batch, normalised as small ones are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..activation import ActivationLike
from ..functional import Nonfinite, batch_norm, check_ghost_size, ghost_batch_norm
from ._variant import Variant, without_activation

__all__ = ["GhostBatchNorm1d", "GhostBatchNorm2d", "GhostBatchNorm3d", "GhostNorm"]


class GhostNorm(Variant):
    """What the three classes share: the most samples that a part of the batch may have."""

    ghost_size = 32

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
        ghost_size: int = 32,
        activation: ActivationLike = None,
        bias: bool = True,
        nonfinite: Nonfinite = "skip",
    ) -> None:
        check_ghost_size(ghost_size)
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
        self.ghost_size = ghost_size

    def _batch_norm(self, input: Tensor, *arguments: Any, **others: Any) -> Tensor:
        if not self.training:  # without running statistics by the batch too, but the whole of it
            return batch_norm(input, *arguments, **others)
        return ghost_batch_norm(input, *arguments, ghost_size=self.ghost_size, **others)

    def extra_repr(self) -> str:
        """As the plain layer's, and the size of a ghost batch."""
        return f"{super().extra_repr()}, ghost_size={self.ghost_size}"


@without_activation(torch.nn.BatchNorm1d)
class GhostBatchNorm1d(GhostNorm):
    r"""Ghost batch normalization of (N, C) or (N, C, L) input: each part of the batch by its own statistics.

    .. math::

        y = \mathrm{activation}\Bigl(\frac{x - \mathrm{E}_p[x]}{\sqrt{\mathrm{Var}_p[x] + \epsilon}} \cdot \gamma
        + \beta + \mathrm{residual}\Bigr)

    In training a batch is cut into consecutive, nearly equal parts p of at most ``ghost_size`` samples, and each is
    normalised by its own moments (Hoffer, Hubara & Soudry 2017, arXiv 1705.08741): a large batch, on one device, with
    the noise that the statistics of small ones have. Evaluation is :class:`BatchNorm1d`'s, and so is training on a
    batch of at most ``ghost_size`` samples. Parameters, buffers and ``state_dict`` keys are :class:`BatchNorm1d`'s too.

    The running statistics move once for each part, one after the other: ``momentum`` is the weight of one part,
    ``num_batches_tracked`` counts parts, a part that is not finite is left out by itself, and ``momentum=None`` is the
    average over all parts. How a batch is cut, and what a mask does: :func:`batchnorm.functional.ghost_batch_norm`.

    Without an activation the layer is a ``torch.nn.BatchNorm1d``, with one it is none.

    Args:
        num_features: C, the size of dimension 1.
        eps: Added to the variance, inside the root.
        momentum: The weight of one part in the running buffers; ``None`` for the cumulative average.
        affine: Whether gamma (``weight``) and beta (``bias``) exist.
        track_running_stats: Whether the running buffers exist. Without them evaluation normalises by the whole batch.
        device: Of parameters and buffers.
        dtype: Of parameters and buffers.
        ghost_size: The most samples that a part may have, 1 or more.
        activation: A name, an :class:`batchnorm.Activation`, a torch activation module, or ``None``.
        bias: ``False`` leaves out beta.
        nonfinite: ``"skip"`` or ``"propagate"``.

    Shape:
        - input, residual: (N, C) or (N, C, L); output: the same shape and dtype.
        - mask: bool, (N,) or (N, L), True where valid: elsewhere the output is 0.

    Raises:
        ArgumentError: ``ghost_size`` is below 1; and what :class:`BatchNorm1d` raises.

    Example:
        >>> layer = GhostBatchNorm1d(3, ghost_size=128)
        >>> layer(torch.randn(1024, 3)).shape
        torch.Size([1024, 3])
        >>> layer.num_batches_tracked
        tensor(8)
    """

    dims = (2, 3)


@without_activation(torch.nn.BatchNorm2d)
class GhostBatchNorm2d(GhostNorm):
    """Ghost batch normalization of (N, C, H, W) input; see :class:`GhostBatchNorm1d`.

    Example:
        >>> layer = GhostBatchNorm2d(8, ghost_size=4)
        >>> x = torch.randn(10, 8, 5, 5)  # parts of 4, 3 and 3
        >>> bool(torch.allclose(layer(x)[:4], torch.nn.BatchNorm2d(8)(x[:4]), atol=1e-5))
        True
    """

    dims = (4,)


@without_activation(torch.nn.BatchNorm3d)
class GhostBatchNorm3d(GhostNorm):
    """Ghost batch normalization of (N, C, D, H, W) input; see :class:`GhostBatchNorm1d`.

    Example:
        >>> GhostBatchNorm3d(2, activation="relu", ghost_size=16)
        GhostBatchNorm3d(2, ..., ghost_size=16)
    """

    dims = (5,)
