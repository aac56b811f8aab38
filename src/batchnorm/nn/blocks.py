"""``ConvBlock``, ``LinearBlock`` and ``ResidualBlock``: where the layer goes, as one argument."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.fx
from torch import Tensor

from ..activation import ActivationLike, as_activation
from ..errors import ArgumentError, ShapeError
from .batchnorm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from .fused import BatchNormAct1d, BatchNormAct2d, BatchNormAct3d

__all__ = ["ConvBlock", "LinearBlock", "ResidualBlock"]

_CONVS: dict[int, Callable[..., torch.nn.Module]] = {1: torch.nn.Conv1d, 2: torch.nn.Conv2d, 3: torch.nn.Conv3d}
_NORMS = {1: BatchNorm1d, 2: BatchNorm2d, 3: BatchNorm3d}
_FUSED = {1: BatchNormAct1d, 2: BatchNormAct2d, 3: BatchNormAct3d}


class Activate(torch.nn.Module):
    """An activation that is not fused, because the norm comes after it."""

    def __init__(self, activation: ActivationLike) -> None:
        super().__init__()
        self.activation = as_activation(activation)

    def forward(self, input: Tensor) -> Tensor:
        return self.activation(input)

    def extra_repr(self) -> str:
        return repr(self.activation)


class _Block(torch.nn.Sequential):
    """Named layers in sequence; a slice of them is a plain ``Sequential``."""

    def __init__(self, layers: dict[str, torch.nn.Module]) -> None:
        super().__init__(OrderedDict(layers))

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return torch.nn.Sequential(OrderedDict(list(self._modules.items())[index]))
        return super().__getitem__(index)


def _check_order(norm: str, dropout: float) -> None:
    if norm not in ("before", "after"):
        raise ArgumentError(f"norm={norm!r} means nothing.", 'use "before" or "after" (the activation).')
    if not 0.0 <= dropout < 1.0:
        raise ArgumentError(f"dropout={dropout} is no rate.", "give a number from 0 to below 1.")


def _tail(
    dimensions: int,
    channels: int,
    activation: ActivationLike,
    norm: str,
    dropout: float,
    arguments: dict[str, Any],
) -> dict[str, torch.nn.Module]:
    """What follows the weights: norm and activation in the order asked for, then dropout."""
    layers: dict[str, torch.nn.Module]
    if norm == "before":
        layers = {"norm": _FUSED[dimensions](channels, activation=activation, **arguments)}
    else:
        layers = {"activation": Activate(activation), "norm": _NORMS[dimensions](channels, **arguments)}
    return layers | ({"dropout": torch.nn.Dropout(dropout)} if dropout else {})


class ConvBlock(_Block):
    """Convolution → norm → activation → dropout, or convolution → activation → norm → dropout.

    With ``norm="before"`` (the activation; Ioffe & Szegedy 2015, §3.2) norm and activation are one fused layer and
    the convolution has no bias: the norm would subtract it again. With ``norm="after"`` it has one.

    Dropout is last, and off unless asked for. The next block's norm then sees values whose variance is larger in
    training than in evaluation, by 1/keep for centred ones (Li et al. 2018, arXiv 1801.05134): prefer dropout after the
    last norm of the network, or run ``recalibrate`` after training.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: One size for every spatial dimension, or one each.
        norm: ``"before"`` or ``"after"`` the activation.
        activation: As for :class:`BatchNormAct2d`.
        dropout: The rate, 0 for no dropout layer.
        dimensions: 1, 2 or 3 spatial dimensions.
        stride: Of the convolution.
        padding: Of the convolution; ``None`` for half the (dilated) kernel: an odd one keeps the size at stride 1.
        dilation: Of the convolution.
        groups: Of the convolution.
        padding_mode: Of the convolution.
        eps: Of the norm.
        momentum: Of the norm.
        device: Of all parameters and buffers.
        dtype: Of all parameters and buffers.

    Shape:
        - input: (N, in_channels, *spatial); output: (N, out_channels, *spatial).

    Raises:
        ArgumentError: An unknown order, a rate outside [0, 1), other than 1 to 3 dimensions.

    Example:
        >>> ConvBlock(3, 8, 3, activation="silu")(torch.randn(2, 3, 16, 16)).shape
        torch.Size([2, 8, 16, 16])
        >>> ConvBlock(3, 8, 3).conv.bias is None, ConvBlock(3, 8, 3, norm="after").conv.bias is None
        (True, False)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        *,
        norm: Literal["before", "after"] = "before",
        activation: ActivationLike = "relu",
        dropout: float = 0.0,
        dimensions: int = 2,
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] | str | None = None,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        _check_order(norm, dropout)
        if dimensions not in _CONVS:
            raise ArgumentError(f"dimensions={dimensions}.", "a convolution has 1, 2 or 3 spatial dimensions.")
        kernel = (kernel_size,) * dimensions if isinstance(kernel_size, int) else kernel_size
        spread = (dilation,) * dimensions if isinstance(dilation, int) else dilation
        if padding is None:
            padding = tuple(d * (k - 1) // 2 for k, d in zip(kernel, spread, strict=True))
        conv = _CONVS[dimensions](
            in_channels,
            out_channels,
            kernel,
            stride,
            padding,
            spread,
            groups,
            bias=norm == "after",
            padding_mode=padding_mode,
            device=device,
            dtype=dtype,
        )
        arguments: dict[str, Any] = {"eps": eps, "momentum": momentum, "device": device, "dtype": dtype}
        super().__init__({"conv": conv, **_tail(dimensions, out_channels, activation, norm, dropout, arguments)})


class LinearBlock(_Block):
    """Linear → norm → activation → dropout, or linear → activation → norm → dropout.

    Order, bias and dropout are those of :class:`ConvBlock`.

    Args:
        in_features: Features of the input.
        out_features: Features of the output.
        norm: ``"before"`` or ``"after"`` the activation.
        activation: As for :class:`BatchNormAct1d`.
        dropout: The rate, 0 for no dropout layer.
        eps: Of the norm.
        momentum: Of the norm.
        device: Of all parameters and buffers.
        dtype: Of all parameters and buffers.

    Shape:
        - input: (N, in_features); output: (N, out_features).

    Raises:
        ShapeError: Input with more dimensions: a norm would take the second one for its channels.
        ArgumentError: An unknown order, a rate outside [0, 1).

    Example:
        >>> LinearBlock(4, 8, dropout=0.1)(torch.randn(16, 4)).shape
        torch.Size([16, 8])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        norm: Literal["before", "after"] = "before",
        activation: ActivationLike = "relu",
        dropout: float = 0.0,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        _check_order(norm, dropout)
        linear = torch.nn.Linear(in_features, out_features, bias=norm == "after", device=device, dtype=dtype)
        arguments: dict[str, Any] = {"eps": eps, "momentum": momentum, "device": device, "dtype": dtype}
        super().__init__({"linear": linear, **_tail(1, out_features, activation, norm, dropout, arguments)})

    def forward(self, input: Tensor) -> Tensor:
        """Apply the block to (N, in_features)."""
        if not isinstance(input, torch.fx.Proxy) and input.dim() != 2:
            raise ShapeError(
                f"expected (N, in_features), got {tuple(input.shape)}.",
                "flatten the positions into the batch: input.flatten(0, -2).",
            )
        return super().forward(input)


class ResidualBlock(torch.nn.Module):
    """Two or three convolutions with norms, and a way around them: ``activation(norm(conv(...)) + shortcut(x))``.

    The addition and the last activation are fused into the last norm. Its gamma starts at 0, so that the block starts
    as its shortcut (Goyal et al. 2017, arXiv 1706.02677, §5.1). The shortcut is the identity where shapes agree, else a
    1×1 convolution with a norm (He et al. 2016, arXiv 1512.03385, option B).

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output; ``None`` for as many.
        bottleneck: Channels between: ``None`` for two 3×3 convolutions, else 1×1 → 3×3 → 1×1 through this many.
        stride: Of the 3×3 convolution that comes first, and of the shortcut.
        groups: Of the 3×3 convolution of a bottleneck.
        activation: As for :class:`BatchNormAct2d`.
        dropout: The rate of dropout after each inner activation, 0 for none; see :class:`ConvBlock` before using it.
        zero_gamma: Whether the last gamma starts at 0.
        dimensions: 1, 2 or 3 spatial dimensions.
        eps: Of the norms.
        momentum: Of the norms.
        device: Of all parameters and buffers.
        dtype: Of all parameters and buffers.

    Shape:
        - input: (N, in_channels, *spatial); output: (N, out_channels, *spatial / stride).

    Example:
        >>> block = ResidualBlock(8)
        >>> x = torch.randn(2, 8, 4, 4).relu()
        >>> torch.equal(block(x), x)
        True
        >>> ResidualBlock(8, 16, stride=2)(x).shape
        torch.Size([2, 16, 2, 2])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        *,
        bottleneck: int | None = None,
        stride: int = 1,
        groups: int = 1,
        activation: ActivationLike = "relu",
        dropout: float = 0.0,
        zero_gamma: bool = True,
        dimensions: int = 2,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if bottleneck is None and groups != 1:
            raise ArgumentError(f"groups={groups} without a bottleneck.", "give bottleneck=, or groups=1.")
        out_channels = in_channels if out_channels is None else out_channels
        shared: dict[str, Any] = {
            "dimensions": dimensions,
            "eps": eps,
            "momentum": momentum,
            "device": device,
            "dtype": dtype,
        }

        def block(before: int, after: int, kernel: int, **arguments: Any) -> ConvBlock:
            return ConvBlock(before, after, kernel, activation=activation, **arguments, **shared)

        if bottleneck is None:
            self.inner = torch.nn.Sequential(block(in_channels, out_channels, 3, stride=stride, dropout=dropout))
            tail = block(out_channels, out_channels, 3)
        else:
            self.inner = torch.nn.Sequential(
                block(in_channels, bottleneck, 1, dropout=dropout),
                block(bottleneck, bottleneck, 3, stride=stride, groups=groups, dropout=dropout),
            )
            tail = block(bottleneck, out_channels, 1)
        self.conv, self.norm = tail[0], tail[1]
        if zero_gamma:
            torch.nn.init.zeros_(self.norm.get_parameter("weight"))
        if in_channels == out_channels and stride == 1:
            self.shortcut: torch.nn.Module = torch.nn.Identity()
        else:
            self.shortcut = ConvBlock(in_channels, out_channels, 1, stride=stride, activation=None, **shared)

    def forward(self, input: Tensor) -> Tensor:
        """Apply the block to (N, in_channels, *spatial)."""
        output: Tensor = self.norm(self.conv(self.inner(input)), residual=self.shortcut(input))
        return output
