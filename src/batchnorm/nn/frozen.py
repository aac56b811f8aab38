"""``FrozenBatchNorm1d`` / ``2d`` / ``3d``: normalisation by the running statistics, in training too."""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

import torch

from ..activation import ActivationLike
from ..errors import ArgumentError
from ..functional import Nonfinite
from ._variant import Variant

__all__ = ["Frozen", "FrozenBatchNorm1d", "FrozenBatchNorm2d", "FrozenBatchNorm3d"]

_F = TypeVar("_F", bound="Frozen")


class Frozen(torch.nn.Module):
    """A norm that ``train()`` does not thaw (a mixin: it goes in front of any norm, torch's too).

    ``training`` is False, whoever sets it, so the layer normalises by its running statistics, which nothing moves. The
    mode that ``train()`` or ``eval()`` asked for last is kept in ``asked_mode``. It needs no ``__init__``: a layer is
    frozen as soon as its class becomes one with this mixin.

    Example:
        >>> class FrozenTorchNorm(Frozen, torch.nn.BatchNorm1d):
        ...     pass
        >>> layer = FrozenTorchNorm(3).train()
        >>> layer.training, layer.asked_mode
        (False, True)
    """

    # On the class: until someone asks.
    asked_mode = True

    # What the layer is without this, where it was frozen after it had been built.
    thawed_class: ClassVar[type[torch.nn.Module] | None] = None

    @property
    def training(self) -> bool:
        """False."""
        return False

    @training.setter
    def training(self, mode: bool) -> None:
        # Who keeps the modes of a model and puts them back (Lightning, around validation) puts back what it has read
        # here, and so does not say what it would ask of a layer that is not frozen.
        self.__dict__["_mode_written"] = True

    def train(self: _F, mode: bool = True) -> _F:
        """Stay in evaluation mode, and remember ``mode``."""
        if not isinstance(mode, bool):
            raise ArgumentError(f"mode={mode!r}: the training mode is expected to be boolean.", "give True or False.")
        super().train(False)
        self.__dict__["asked_mode"] = mode
        self.__dict__.pop("_mode_written", None)
        return self


class _FrozenBatchNorm(Frozen, Variant):
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
        activation: ActivationLike = None,
        bias: bool = True,
        nonfinite: Nonfinite = "skip",
    ) -> None:
        if not track_running_stats:
            raise ArgumentError(
                "track_running_stats=False leaves a frozen layer nothing to normalise by.",
                "keep the running statistics, or use a layer that normalises by the batch.",
            )
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
        self.train()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        # Frozen layers elsewhere do not count batches, whatever version their checkpoints have; this one never will.
        state_dict.setdefault(f"{prefix}num_batches_tracked", self.num_batches_tracked)
        super()._load_from_state_dict(state_dict, prefix, *others)


class FrozenBatchNorm1d(_FrozenBatchNorm):
    r"""Batch normalization of (N, C) or (N, C, L) input by its running statistics, in training as in evaluation.

    .. math:: y = \mathrm{activation}\left(\frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} \cdot \gamma + \beta
              + \mathrm{residual}\right)

    with the running mean :math:`\mu` and variance :math:`\sigma^2`, which no pass moves: ``train()`` leaves the layer
    in evaluation mode. So a batch may be of any size, a single value included, and no gradient flows through the
    statistics. Gamma and beta are parameters like any others: ``requires_grad_(False)`` fixes them too.
    :func:`batchnorm.freeze` does this to the layers of a model.

    Parameters, buffers and ``state_dict`` keys are those of ``torch.nn.BatchNorm1d``. It is none of those, as frozen
    layers elsewhere are not either: ``convert_sync_batchnorm`` would thaw one, and ``update_bn`` of torch reset its
    statistics. Checkpoints without ``num_batches_tracked`` load (frozen layers elsewhere have none).

    Args:
        num_features: C, the size of dimension 1.
        eps: Added to the variance, inside the root.
        momentum: Kept for the day when the layer is thawed.
        affine: Whether gamma (``weight``) and beta (``bias``) exist.
        track_running_stats: True; without running statistics there is nothing to normalise by.
        device: Of parameters and buffers.
        dtype: Of parameters and buffers. Half-precision input takes float32 ones.
        activation: A name, an :class:`batchnorm.Activation`, a torch activation module, or ``None``.
        bias: ``False`` leaves out beta.
        nonfinite: ``"skip"`` or ``"propagate"``; kept for the day when the layer is thawed.

    Shape:
        - input, residual: (N, C) or (N, C, L); output: the same shape and dtype.
        - mask: bool, (N,) or (N, L), True where valid: elsewhere the output is 0.

    Raises:
        ArgumentError: ``track_running_stats=False``.
        ShapeError: Another number of dimensions or channels, a residual or a mask that does not fit.
        DtypeError: Input that is not floating point.

    Example:
        >>> layer = FrozenBatchNorm1d(3).train()
        >>> layer.training
        False
        >>> layer(torch.full((1, 3), 2.0)).round(decimals=3)
        tensor([[2., 2., 2.]], grad_fn=...)
        >>> layer.running_mean
        tensor([0., 0., 0.])
    """

    dims = (2, 3)


class FrozenBatchNorm2d(_FrozenBatchNorm):
    """:class:`FrozenBatchNorm1d` for (N, C, H, W) input.

    Shape:
        - input, residual: (N, C, H, W), any strides, which the output keeps.
        - mask: bool, (N, H, W), True where valid.

    Example:
        >>> layer = FrozenBatchNorm2d(8)
        >>> layer.load_state_dict(torch.nn.BatchNorm2d(8).state_dict())
        <All keys matched successfully>
    """

    dims = (4,)


class FrozenBatchNorm3d(_FrozenBatchNorm):
    """:class:`FrozenBatchNorm1d` for (N, C, D, H, W) input.

    Shape:
        - input, residual: (N, C, D, H, W), any strides, which the output keeps.
        - mask: bool, (N, D, H, W), True where valid.

    Example:
        >>> FrozenBatchNorm3d(2, activation="relu")(torch.randn(1, 2, 3, 4, 5)).shape
        torch.Size([1, 2, 3, 4, 5])
    """

    dims = (5,)
