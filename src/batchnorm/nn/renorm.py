"""``BatchRenorm1d`` / ``2d`` / ``3d``: batch norm corrected towards the statistics that evaluation uses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from ..activation import ActivationLike
from ..errors import ArgumentError
from ..functional import Nonfinite
from ..functional.renorm import check_limits, renormalizing
from ._base import State
from ._variant import Variant, without_activation

__all__ = ["BatchRenorm1d", "BatchRenorm2d", "BatchRenorm3d"]

_Warmup: TypeAlias = "int | tuple[int, int, int]"


class _BatchRenorm(Variant):
    counts_training = True  # the warmup goes by it

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
        r_max: float = 3.0,
        d_max: float = 5.0,
        warmup: _Warmup = (5_000, 40_000, 25_000),
        activation: ActivationLike = None,
        bias: bool = True,
        nonfinite: Nonfinite = "skip",
    ) -> None:
        if not track_running_stats:
            raise ArgumentError(
                "track_running_stats=False leaves nothing to correct towards.",
                "keep the running statistics, or use a plain layer.",
            )
        check_limits(r_max, d_max)
        given = (0, warmup, warmup) if isinstance(warmup, int) else warmup
        numbers = isinstance(given, Sequence) and all(
            isinstance(each, int) and not isinstance(each, bool) for each in given
        )
        start, r_end, d_end = given if numbers and len(given) == 3 else (-1, -1, -1)
        if not (0 <= start <= r_end and start <= d_end):
            raise ArgumentError(
                f"warmup={warmup} is no schedule.",
                "give the numbers of batches after which the limits begin to grow, r_max is reached, and d_max is.",
            )
        if max(r_end, d_end) > 0 and math.inf in (r_max, d_max):
            raise ArgumentError(f"r_max={r_max} and d_max={d_max} cannot be grown to.", "set warmup=0.")
        super().__init__(
            num_features,
            eps,
            momentum,
            affine,
            device=device,
            dtype=dtype,
            activation=activation,
            bias=bias,
            nonfinite=nonfinite,
        )
        self.r_max, self.d_max = r_max, d_max
        self.warmup = (start, r_end, d_end)

    def limits(self) -> tuple[float | Tensor, float | Tensor]:
        """The limits of r and d for the next batch: numbers without a warmup, else 0-d tensors on the layer's device.

        Example:
            >>> layer = BatchRenorm1d(3, warmup=(0, 100, 10))
            >>> _ = layer.num_batches_tracked.fill_(50)
            >>> layer.limits()
            (tensor(2.), tensor(5.))
        """
        return self._limits(self.num_batches_tracked)

    def _limits(self, seen: Tensor | None) -> tuple[float | Tensor, float | Tensor]:
        start, r_end, d_end = self.warmup
        if max(r_end, d_end) == 0:
            return self.r_max, self.d_max
        if seen is None:
            raise ArgumentError(
                "the warmup goes by the number of batches, and num_batches_tracked is None.", "set warmup=0."
            )
        # Counted on the device, which nothing waits for, and kept by checkpoints.
        r_max = 1.0 + (self.r_max - 1.0) * _progress(seen, start, r_end)
        return r_max, self.d_max * _progress(seen, start, d_end)

    def _by_state(
        self,
        state: State,
        input: Tensor,
        residual: Tensor | None,
        mask: Tensor | None,
        activation: ActivationLike,
        training: bool,
        moves: bool = True,
    ) -> Tensor:
        weight, bias, mean, var, seen = state
        if training:
            # Here, not in the function behind the layer: that one may be handed other buffers to move.
            r_max, d_max = self._limits(seen)
            weight, bias = renormalizing(input, mean, var, weight, bias, self.eps, r_max, d_max, residual, mask)
        return super()._by_state((weight, bias, mean, var, seen), input, residual, mask, activation, training, moves)

    def extra_repr(self) -> str:
        """As the plain layer's, and the limits and their warmup."""
        return f"{super().extra_repr()}, r_max={self.r_max}, d_max={self.d_max}, warmup={self.warmup}"


def _progress(seen: Tensor, start: int, end: int) -> Tensor:
    """0 until ``start`` batches were seen, 1 from ``end`` on, and a line between them."""
    if start == end:
        return (seen >= end).to(torch.float32)
    return ((seen - start).to(torch.float32) / (end - start)).clamp(0.0, 1.0)


@without_activation(torch.nn.BatchNorm1d)
class BatchRenorm1d(_BatchRenorm):
    r"""Batch renormalization of (N, C) or (N, C, L) input: small batches, trained as they are evaluated.

    .. math::

        \hat{x} = \frac{x - \mu_B}{\sigma_B} \cdot r + d, \qquad
        r = \mathrm{clip}\left(\frac{\sigma_B}{\sigma}, \frac{1}{r_{max}}, r_{max}\right), \quad
        d = \mathrm{clip}\left(\frac{\mu_B - \mu}{\sigma}, -d_{max}, d_{max}\right), \qquad
        y = \mathrm{activation}(\hat{x} \cdot \gamma + \beta + \mathrm{residual})

    with the batch's moments (B) and the running statistics as they were before it (Ioffe 2017, arXiv 1702.03275,
    Algorithm 1). r and d are constants in the backward pass, so the gradient still flows through the batch's moments.
    Where neither is clipped, training computes what evaluation does. The running statistics move as those of
    :class:`BatchNorm1d`, whose parameters, buffers and ``state_dict`` these are; without an activation the layer is a
    ``torch.nn.BatchNorm1d``. Evaluation is that of the plain layer.

    Early in training the running statistics are far from the batch's, so the limits grow with the number of batches
    seen: ``warmup=(start, r_end, d_end)`` is plain batch norm (limits 1 and 0) for ``start`` batches, and from there a
    line to ``r_max`` at ``r_end`` batches and to ``d_max`` at ``d_end``. The default is the schedule that the paper
    describes for its own experiments. The count is ``num_batches_tracked``, so checkpoints keep it.

    Args:
        num_features: C, the size of dimension 1.
        eps: Added to the variances, inside the roots.
        momentum: The weight of the new batch in the running buffers; ``None`` for the cumulative average.
        affine: Whether gamma (``weight``) and beta (``bias``) exist.
        track_running_stats: True; without running statistics there is nothing to correct towards.
        device: Of parameters and buffers.
        dtype: Of parameters and buffers. Half-precision input takes float32 ones.
        r_max: 1 or more. 1, with ``d_max`` 0, is plain batch norm.
        d_max: 0 or more.
        warmup: Three numbers of batches, as above; one number n is (0, n, n); 0 has the limits from the first batch.
        activation: A name, an :class:`batchnorm.Activation`, a torch activation module, or ``None``.
        bias: ``False`` leaves out beta.
        nonfinite: ``"skip"`` or ``"propagate"``.

    Shape:
        - input, residual: (N, C) or (N, C, L); output: the same shape and dtype.
        - mask: bool, (N,) or (N, L), True where valid: elsewhere the output is 0.

    Raises:
        ArgumentError: ``track_running_stats=False``, limits or a warmup that mean nothing.
        ShapeError: Another number of dimensions or channels, a residual or a mask that does not fit.
        TooFewValuesError: One value a channel in training.
        DtypeError: Input that is not floating point.

    The recomputation of activation checkpointing is that of the first pass, although the running statistics have moved
    since (:func:`batchnorm.functional.batch_renorm` says how, and what holds for several passes on the same batch).

    Example:
        >>> layer = BatchRenorm1d(1, eps=1e-8, warmup=0)
        >>> x = torch.tensor([[1.0], [3.0]])
        >>> layer(x)  # r = σ_B / σ = 1 and d = (2 − 0) / 1 = 2: the running statistics were 0 and 1
        tensor([[1.],
                [3.]], grad_fn=...)
        >>> layer.running_mean, layer.running_var
        (tensor([0.2000]), tensor([1.1000]))
    """

    dims = (2, 3)


@without_activation(torch.nn.BatchNorm2d)
class BatchRenorm2d(_BatchRenorm):
    """:class:`BatchRenorm1d` for (N, C, H, W) input.

    Shape:
        - input, residual: (N, C, H, W), any strides, which the output keeps.
        - mask: bool, (N, H, W), True where valid.

    Example:
        >>> layer = BatchRenorm2d(8, r_max=2.0, d_max=1.0, warmup=(100, 1000, 500))
        >>> layer.limits()
        (tensor(1.), tensor(0.))
    """

    dims = (4,)


@without_activation(torch.nn.BatchNorm3d)
class BatchRenorm3d(_BatchRenorm):
    """:class:`BatchRenorm1d` for (N, C, D, H, W) input.

    Shape:
        - input, residual: (N, C, D, H, W), any strides, which the output keeps.
        - mask: bool, (N, D, H, W), True where valid.

    Example:
        >>> BatchRenorm3d(2, activation="relu")(torch.randn(2, 2, 3, 4, 5)).shape
        torch.Size([2, 2, 3, 4, 5])
    """

    dims = (5,)
