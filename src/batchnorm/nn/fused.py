"""``BatchNormAct1d`` / ``2d`` / ``3d``: norm, residual and activation as one layer."""

from __future__ import annotations

import torch
from torch import Tensor

from ..activation import ActivationLike, as_activation
from ..functional import Nonfinite
from ._base import Norm

__all__ = ["BatchNormAct1d", "BatchNormAct2d", "BatchNormAct3d"]


class _BatchNormAct(Norm):
    # Not a torch `_BatchNorm`: tools that look for one by its class (convert_sync_batchnorm, torch.ao) would take it
    # for a plain norm and drop the activation without a word.

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
        activation: ActivationLike = "relu",
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
            bias=bias,
            nonfinite=nonfinite,
        )
        self.activation = as_activation(activation)

    def forward(self, input: Tensor, residual: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """``activation(norm(input) + residual)``; see :func:`batchnorm.functional.batch_norm`."""
        return self._normalize(input, residual, mask, self.activation)

    def extra_repr(self) -> str:
        """As the unfused layer's, and the activation."""
        return f"{super().extra_repr()}, activation={self.activation!r}"


class BatchNormAct1d(_BatchNormAct):
    """``activation(batch_norm(x) + residual)`` of (N, C) or (N, C, L) input as one layer.

    Parameters, buffers and ``state_dict`` keys are those of :class:`BatchNorm1d`, whose formula, arguments and errors
    hold here too. For the backward pass it keeps its input and a few vectors: never its output, never the
    normalised values; with a residual one bit an element more (relu, leaky_relu, relu6, hardtanh), or the residual
    (the smooth activations, whose derivative needs the value; and under ``torch.func``).

    Args:
        num_features: C, the size of dimension 1.
        eps: Added to the variance, inside the root.
        momentum: The weight of the new batch in the running buffers; ``None`` for the cumulative average.
        affine: Whether gamma (``weight``) and beta (``bias``) exist.
        track_running_stats: Whether the running buffers exist.
        device: Of parameters and buffers.
        dtype: Of parameters and buffers.
        activation: A name, an :class:`batchnorm.Activation`, a torch activation module, or ``None``.
        bias: ``False`` leaves out beta.
        nonfinite: ``"skip"`` or ``"propagate"``.

    Shape:
        - input, residual: (N, C) or (N, C, L); output: the same shape and dtype.
        - mask: bool, (N,) or (N, L), True where valid: elsewhere the output is 0, whatever the activation of 0 is.

    Example:
        >>> layer = BatchNormAct1d(3, activation="silu")
        >>> x = torch.randn(8, 3)
        >>> layer(x, residual=x).shape
        torch.Size([8, 3])
    """

    dims = (2, 3)


class BatchNormAct2d(_BatchNormAct):
    """``activation(batch_norm(x) + residual)`` of (N, C, H, W) input; see :class:`BatchNormAct1d`.

    Example:
        >>> layer = BatchNormAct2d(8)
        >>> bool((layer(torch.randn(2, 8, 4, 4)) >= 0).all())
        True
    """

    dims = (4,)


class BatchNormAct3d(_BatchNormAct):
    """``activation(batch_norm(x) + residual)`` of (N, C, D, H, W) input; see :class:`BatchNormAct1d`.

    Example:
        >>> BatchNormAct3d(2, activation=torch.nn.LeakyReLU(0.2))
        BatchNormAct3d(2, ..., activation=Activation('leaky_relu', negative_slope=0.2))
    """

    dims = (5,)
