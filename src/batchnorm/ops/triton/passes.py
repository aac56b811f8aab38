"""What all kernels of one pass over an input take, checked and laid out."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from ...activation import Activation
from ..eager import statistics_dtype
from .launch import ACCUMULATE, ELEMENTS, launch
from .layout import Walk, walk
from .tiles import Cut, cut, fits_whole

__all__ = ["Pass", "activation_constants"]


class Pass:
    """What all kernels of one pass over an input take.

    A kernel takes any memory for what it is told, so what does not fit is refused here. Who wants words for it checks
    before, as :mod:`batchnorm.functional` does.

    Attributes:
        walk: How the input is walked.
        like: A new tensor with the strides of ``torch.empty_like(input)``.
        mask: As bytes, or None.
        constants: What is compiled into the kernels.
    """

    def __init__(self, input: Tensor, mask: Tensor | None) -> None:
        if input.dtype not in ELEMENTS or input.dim() < 2:
            raise RuntimeError(f"batchnorm: the input is {input.dtype} of shape {tuple(input.shape)}.")
        self.like = torch.empty_like(input)
        self.walk: Walk = walk(self.like)
        self.shape, self.device = input.shape, input.device
        self.input = self.ordered(input)
        self.mask = None if mask is None else self._bytes(mask)
        self.dtype = statistics_dtype(input.dtype)
        self.constants: dict[str, Any] = {
            "UNIT": self.walk.unit,
            "ROWS": self.walk.rows,
            "WIDE": self.walk.wide,
            "ACC": ACCUMULATE[self.dtype],
        }

    def _bytes(self, mask: Tensor) -> Tensor:
        if mask.dtype != torch.bool or mask.numel() != self.walk.positions or mask.device != self.device:
            raise RuntimeError(f"batchnorm: the mask is {mask.dtype} of shape {tuple(mask.shape)} on {mask.device}.")
        return mask.contiguous().view(torch.uint8)

    def ordered(self, tensor: Tensor) -> Tensor:
        """``tensor``, of the input's shape, in the walk's order."""
        if tensor.shape != self.shape or tensor.device != self.device:
            raise RuntimeError(f"batchnorm: shape {tuple(tensor.shape)} on {tensor.device}, not the input's.")
        return self.walk.order(tensor.resolve_neg())

    def ordered_or_none(self, tensor: Tensor | None) -> Tensor | None:
        """As :meth:`ordered`, of what may not be there."""
        return None if tensor is None else self.ordered(tensor)

    def statistics(self, *vectors: Tensor | None) -> tuple[Tensor | None, ...]:
        """Vectors (C,) of any precision, as a kernel reads them."""
        return tuple(None if vector is None else self._vector(vector, ELEMENTS) for vector in vectors)

    def parameters(self, *vectors: Tensor | None) -> tuple[Tensor | None, ...]:
        """As :meth:`statistics`, of the input's dtype or that of its statistics."""
        dtypes = (self.dtype, self.like.dtype)
        return tuple(None if vector is None else self._vector(vector, dtypes) for vector in vectors)

    def _vector(self, vector: Tensor, dtypes: Collection[torch.dtype]) -> Tensor:
        if vector.shape != (self.walk.channels,) or vector.dtype not in dtypes or vector.device != self.device:
            described = f"{vector.dtype} of shape {tuple(vector.shape)} on {vector.device}"
            raise RuntimeError(f"batchnorm: a vector is {described}, for {self.walk.channels} channels.")
        return vector.resolve_neg().contiguous()

    def new_vector(self, dtype: torch.dtype | None = None) -> Tensor:
        """Memory for a vector (C,), of the statistics' dtype if no other is named."""
        return self.like.new_empty(self.walk.channels, dtype=dtype or self.dtype)

    def new_tensor(self) -> Tensor:
        """Memory in the walk's order for a result of the input's shape and dtype; see :meth:`result`."""
        return torch.empty_like(self.like if self.walk.lies(self.like) else self.input)

    def result(self, found: Tensor) -> Tensor:
        """What :meth:`new_tensor` gave, when it is filled, with the strides that the contract names."""
        return found if self.walk.lies(self.like) else torch.empty_like(self.like).copy_(found)

    def cut(self, kernel: str, bits: Tensor | None = None) -> Cut:
        """How ``kernel`` shares the walk."""
        return cut(kernel, self.walk, self.like.element_size(), bits is not None)

    def fits_whole(self, kernel: str) -> Cut | None:
        """How ``kernel`` has all positions in one tile, or None."""
        return fits_whole(kernel, self.walk, self.like.element_size())

    def launch(self, kernel: Any, programs: int, cut: Cut, *arguments: Any, **constants: Any) -> None:
        """One launch, with what all kernels take."""
        sizes = {"BLOCK": cut.block, "CHANNELS": cut.channels}
        launch(kernel, programs, self.like, *arguments, warps=cut.warps, **self.constants, **sizes, **constants)


def activation_constants(activation: Activation, eps: float) -> dict[str, Any]:
    """What is compiled in of an activation and of eps: floats that are passed are rounded to 32 bits."""
    first, second = (*activation.parameters, 0.0, 0.0)[:2]
    return {"EPS": eps, "ACT": activation.name, "P0": first, "P1": second}
