"""``BatchNorm1d`` / ``2d`` / ``3d``: the drop-in for torch's."""

from __future__ import annotations

import torch
from torch import Tensor

from ._base import Norm

__all__ = ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d"]


class PlainNorm(Norm):
    """A norm without a residual and an activation."""

    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalise ``input`` (N, C, *spatial); see :func:`batchnorm.functional.batch_norm` for ``mask``."""
        return self._normalize(input, None, mask, None)


class BatchNorm1d(PlainNorm, torch.nn.BatchNorm1d):
    r"""Batch normalization of (N, C) or (N, C, L) input, in place of ``torch.nn.BatchNorm1d``.

    .. math:: y = \frac{x - \mathrm{E}[x]}{\sqrt{\mathrm{Var}[x] + \epsilon}} \cdot \gamma + \beta

    Each channel's moments are taken over the batch (and over L), the variance biased (Ioffe & Szegedy 2015,
    arXiv 1502.03167, Algorithm 1). In training they also move the running buffers, with the unbiased variance, by
    ``running = (1 − momentum)·running + momentum·batch``; evaluation normalises by those.

    Args:
        num_features: C, the size of dimension 1.
        eps: Added to the variance, inside the root.
        momentum: The weight of the new batch in the running buffers (Keras' momentum is 1 minus this); ``None`` for
            the cumulative average of all batches, which here costs no device synchronisation.
        affine: Whether gamma (``weight``) and beta (``bias``) exist.
        track_running_stats: Whether the running buffers exist; without them evaluation uses the batch too.
        device: Of parameters and buffers.
        dtype: Of parameters and buffers. Half-precision input takes float32 ones.
        bias: ``False`` leaves out beta.
        nonfinite: ``"skip"`` keeps a batch with a NaN or infinite statistic in any channel out of the buffers;
            ``"propagate"`` does as torch does.

    Shape:
        - input: (N, C) or (N, C, L), any strides; output: the same shape and dtype.
        - mask: bool, (N,) or (N, L), True where valid: padding enters no statistic and comes out as 0.

    Raises:
        ShapeError: Another number of dimensions, another number of channels, a mask that does not fit.
        TooFewValuesError: One value a channel in training.
        DtypeError: Input that is not floating point.

    Example:
        >>> layer = BatchNorm1d(3)
        >>> layer(torch.randn(8, 3)).shape
        torch.Size([8, 3])
        >>> isinstance(layer, torch.nn.BatchNorm1d), int(layer.num_batches_tracked)
        (True, 1)
    """

    dims = (2, 3)


class BatchNorm2d(PlainNorm, torch.nn.BatchNorm2d):
    """Batch normalization of (N, C, H, W) input, in place of ``torch.nn.BatchNorm2d``.

    Formula, arguments and errors are those of :class:`BatchNorm1d`; moments are taken over N, H and W.

    Shape:
        - input: (N, C, H, W), contiguous, channels-last or any other strides, which the output keeps.
        - mask: bool, (N, H, W), True where valid.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, bias=False), BatchNorm2d(8), torch.nn.ReLU())
        >>> model(torch.randn(4, 3, 16, 16)).shape
        torch.Size([4, 8, 14, 14])
    """

    dims = (4,)


class BatchNorm3d(PlainNorm, torch.nn.BatchNorm3d):
    """Batch normalization of (N, C, D, H, W) input, in place of ``torch.nn.BatchNorm3d``.

    Formula, arguments and errors are those of :class:`BatchNorm1d`; moments are taken over N, D, H and W.

    Shape:
        - input: (N, C, D, H, W), any strides, which the output keeps.
        - mask: bool, (N, D, H, W), True where valid.

    Example:
        >>> BatchNorm3d(2)(torch.randn(2, 2, 3, 4, 5)).shape
        torch.Size([2, 2, 3, 4, 5])
    """

    dims = (5,)
