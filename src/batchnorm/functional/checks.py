"""What the functions refuse, in words that name the shapes and the mend."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from ..errors import ArgumentError, DeviceError, DtypeError, ShapeError, TooFewValuesError
from ..ops.eager import statistics_dtype

__all__ = ["Nonfinite", "check_nonfinite", "check_values", "checked_tensors"]

Nonfinite: TypeAlias = Literal["skip", "propagate"]

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def check_nonfinite(nonfinite: str) -> None:
    """Refuse what is no policy for statistics that are not finite."""
    if nonfinite not in ("skip", "propagate"):
        raise ArgumentError(f"nonfinite={nonfinite!r} means nothing.", 'use "skip" or "propagate".')


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


def check_values(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float | Tensor | None,
    eps: float,
    nonfinite: str,
    num_batches_tracked: Tensor | None,
) -> None:
    """What no kernel sees, or none could be chosen with."""
    if input.dim() < 2:
        raise ShapeError(
            f"the input has shape {_shape(input)}, and batch norm needs (N, C, *spatial).",
            "add the batch dimension: input.unsqueeze(0).",
        )
    if (running_mean is None) != (running_var is None):
        raise ArgumentError(
            "only one of running_mean and running_var is given.", "give both, or neither for no tracking."
        )
    if not training and running_mean is None:
        raise ArgumentError(
            "evaluation needs running statistics, and running_mean is None.",
            "give running_mean and running_var, or set training=True to normalise by the batch.",
        )
    if nonfinite != "skip":
        check_nonfinite(nonfinite)
    if momentum is None:
        if training and running_mean is not None and num_batches_tracked is None:
            raise ArgumentError(
                "momentum=None is the average over all batches, and nothing counts them.", "give num_batches_tracked."
            )
    elif isinstance(momentum, Tensor):
        if momentum.dim() != 0:
            raise ArgumentError(f"momentum has shape {_shape(momentum)}.", "give a number, or a 0-d tensor.")
        _check_device("momentum", momentum, input)
    if eps <= 0 and (training or eps < 0):
        # In evaluation the variance is a constant that the user answers for; a batch's can always be 0.
        raise ArgumentError(f"eps must be positive, but is {eps}.", "use 1e-5, or less for data of tiny variance.")


def checked_tensors(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    residual: Tensor | None,
    mask: Tensor | None,
) -> tuple[Tensor | None, Tensor | None]:
    """Refuse tensors that do not fit together; residual and mask as the kernels take them."""
    if input.dtype not in _DTYPES:
        raise DtypeError(f"the input is {input.dtype}, which this cannot average.", "convert it: input.float().")
    for name, vector in (
        ("running_mean", running_mean),
        ("running_var", running_var),
        ("weight", weight),
        ("bias", bias),
    ):
        if vector is not None:
            _check_vector(name, vector, input)
    # Under a mask the count lives on the device: one valid value then has variance 0, by the same rule.
    if training and mask is None and input.numel() == input.shape[1] and input.shape[1] > 0:
        raise TooFewValuesError(
            f"the input has shape {_shape(input)}: expected more than 1 value per channel when training.",
            "use a larger batch, drop the last incomplete one (DataLoader(drop_last=True)), or call eval().",
        )
    return (
        None if residual is None else _checked_residual(residual, input),
        None if mask is None else _checked_mask(mask, input),
    )


def _check_device(name: str, tensor: Tensor, input: Tensor) -> None:
    if tensor.device != input.device:
        raise DeviceError(
            f"{name} is on {tensor.device} and the input on {input.device}.",
            f"move one of them, for example with layer.to({str(input.device)!r}).",
        )


def _check_vector(name: str, vector: Tensor, input: Tensor) -> None:
    _check_device(name, vector, input)
    channels = input.shape[1]
    if vector.dim() != 1 or vector.shape[0] != channels:
        raise ShapeError(
            f"{name} has shape {_shape(vector)}, and the input {_shape(input)} has {channels} channels (dimension 1).",
            f"{name} should contain {channels} elements"
            + (", or transpose the input to (N, C, *spatial)." if input.shape[-1] == vector.numel() else "."),
        )
    # Buffers may be of any precision (they are converted); parameters take part in the arithmetic.
    if name.startswith("running"):
        if vector.dtype not in _DTYPES:
            raise DtypeError(f"{name} is {vector.dtype}, which holds no statistics.", f"convert it: {name}.float().")
    elif vector.dtype not in (input.dtype, statistics_dtype(input.dtype)):
        raise DtypeError(
            f"{name} is {vector.dtype} and the input {input.dtype}.",
            f"convert one of them, for example with layer.to({statistics_dtype(input.dtype)}).",
        )


def _checked_residual(residual: Tensor, input: Tensor) -> Tensor:
    _check_device("the residual", residual, input)
    if residual.shape != input.shape:
        raise ShapeError(
            f"the residual has shape {_shape(residual)} and the input {_shape(input)}; nothing is broadcast.",
            "bring the residual to the input's shape.",
        )
    if residual.dtype != input.dtype:
        # Autocast mixes dtypes along a skip connection by design, and would convert here itself.
        if not torch.is_autocast_enabled(input.device.type):
            raise DtypeError(
                f"the residual is {residual.dtype} and the input {input.dtype}.",
                "convert it: residual.to(input.dtype).",
            )
        residual = residual.to(input.dtype)
    return residual


def _checked_mask(mask: Tensor, input: Tensor) -> Tensor:
    _check_device("the mask", mask, input)
    if mask.dtype != torch.bool:
        raise DtypeError(f"the mask is {mask.dtype}.", "convert it: mask.bool(), True where a position is valid.")
    positions = (input.shape[0], *input.shape[2:])
    if mask.dim() == input.dim() and mask.shape[1] == 1:
        mask = mask.squeeze(1)
    if mask.shape != positions:
        raise ShapeError(
            f"the mask has shape {_shape(mask)} and the input {_shape(input)}.",
            f"a mask says which positions are valid, for all channels alike: shape {positions}.",
        )
    return mask
