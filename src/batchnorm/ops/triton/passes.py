"""What all kernels of one pass over an input take, checked and laid out."""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from ...activation import Activation
from ..eager import statistics_dtype
from .launch import ACCUMULATE, ELEMENTS, Known, launch
from .layout import Walk, is_dense, walk
from .tiles import Cut, Merge, cut, fits_whole, merge

__all__ = ["Pass", "Plan", "activation_constants", "plan"]


class Plan:
    """What follows from an input's shape, strides and dtype.

    Attributes:
        strides: Of the outputs, as ``torch.empty_like(input)`` has them.
        walk: How a tensor with these is walked.
        lies: Whether it lies in that order, and is no copy.
        dtype: Of the statistics.
        constants: What is compiled into the kernels.
        common: The same with the sizes of a kernel's tiles, by its name.
        known: The launches that there have been.
    """

    def __init__(self, shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype) -> None:
        self.strides = torch.empty_like(torch.empty_strided(shape, strides, dtype=dtype, device="meta")).stride()
        self.walk = walk(shape, self.strides)
        self.lies = is_dense(shape, self.strides, self.walk.rows)
        self.dtype = statistics_dtype(dtype)
        self.itemsize = dtype.itemsize
        self.constants: dict[str, Any] = {
            "UNIT": self.walk.unit,
            "ROWS": self.walk.rows,
            "WIDE": self.walk.wide,
            "ACC": ACCUMULATE[self.dtype],
        }
        self.common: dict[str, dict[str, Any]] = {}
        self.known: Known = {}
        self._cuts: dict[str, Cut] = {}
        self._merges: dict[int, Merge] = {}
        self._whole: dict[str, Cut | None] = {}

    def cut(self, kernel: str) -> Cut:
        """How ``kernel`` shares the walk."""
        if kernel not in self._cuts:
            self._cuts[kernel] = cut(kernel, self.walk, self.itemsize)
        return self._cuts[kernel]

    def merge(self, slices: int) -> Merge:
        """How so many slices become one."""
        if slices not in self._merges:
            self._merges[slices] = merge(slices)
        return self._merges[slices]

    def fits_whole(self, kernel: str) -> Cut | None:
        """How ``kernel`` has all positions in one tile, or None."""
        if kernel not in self._whole:
            self._whole[kernel] = fits_whole(kernel, self.walk, self.itemsize)
        return self._whole[kernel]


plan = functools.lru_cache(1024)(Plan)


class Pass:
    """What all kernels of one pass over an input take.

    A kernel takes any memory for what it is told, so what does not fit is refused here. Who wants words for it checks
    before, as :mod:`batchnorm.functional` does.

    Attributes:
        plan: What is decided.
        walk: The plan's.
        given: The input as it came.
        input: The input in the walk's order.
        mask: As bytes, or None.
    """

    def __init__(self, input: Tensor, mask: Tensor | None) -> None:
        if input.dtype not in ELEMENTS or input.dim() < 2:
            raise RuntimeError(f"batchnorm: the input is {input.dtype} of shape {tuple(input.shape)}.")
        self.given, self.shape, self.device = input, input.shape, input.device
        self.plan = plan(self.shape, input.stride(), input.dtype)
        self.walk: Walk = self.plan.walk
        self.input = self.ordered(input)
        self.mask = None if mask is None else self._bytes(mask)

    def _bytes(self, mask: Tensor) -> Tensor:
        if mask.dtype != torch.bool or mask.numel() != self.walk.positions or mask.device != self.device:
            raise RuntimeError(f"batchnorm: the mask is {mask.dtype} of shape {tuple(mask.shape)} on {mask.device}.")
        return mask.contiguous().view(torch.uint8)

    def ordered(self, tensor: Tensor) -> Tensor:
        """``tensor``, of the input's shape, in the walk's order."""
        if tensor.shape != self.shape or tensor.dtype != self.given.dtype or tensor.device != self.device:
            described = f"{tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}"
            raise RuntimeError(f"batchnorm: a tensor is {described}, which the input is not.")
        if tensor.is_neg():
            tensor = tensor.resolve_neg()
        if self.plan.lies and tensor.stride() == self.plan.strides:
            return tensor
        return self.walk.order(tensor)

    def ordered_or_none(self, tensor: Tensor | None) -> Tensor | None:
        """As :meth:`ordered`, of what may not be there."""
        return None if tensor is None else self.ordered(tensor)

    def statistics(self, *vectors: Tensor | None) -> tuple[Tensor | None, ...]:
        """Vectors (C,) of any precision, as a kernel reads them."""
        return tuple(None if vector is None else self._vector(vector, ELEMENTS) for vector in vectors)

    def parameters(self, *vectors: Tensor | None) -> tuple[Tensor | None, ...]:
        """As :meth:`statistics`, of the input's dtype or that of its statistics."""
        dtypes = (self.plan.dtype, self.given.dtype)
        return tuple(None if vector is None else self._vector(vector, dtypes) for vector in vectors)

    def _vector(self, vector: Tensor, dtypes: Collection[torch.dtype]) -> Tensor:
        if vector.shape != (self.walk.channels,) or vector.dtype not in dtypes or vector.device != self.device:
            described = f"{vector.dtype} of shape {tuple(vector.shape)} on {vector.device}"
            raise RuntimeError(f"batchnorm: a vector is {described}, for {self.walk.channels} channels.")
        if vector.is_neg():
            vector = vector.resolve_neg()
        return vector.contiguous()

    def new_vector(self, dtype: torch.dtype | None = None) -> Tensor:
        """Memory for a vector (C,), of the statistics' dtype if no other is named."""
        return torch.empty(self.walk.channels, dtype=dtype or self.plan.dtype, device=self.device)

    def new_parts(self, slices: int) -> Tensor:
        """Memory for a statistic of every slice, (slices, C). Each has its own, and so is aligned."""
        return torch.empty((slices, self.walk.channels), dtype=self.plan.dtype, device=self.device)

    def new_count(self) -> Tensor:
        """Memory for a count, ()."""
        return torch.empty((), dtype=torch.int64, device=self.device)

    def new_tensor(self) -> Tensor:
        """Memory in the walk's order for a result of the input's shape and dtype; see :meth:`result`."""
        return torch.empty_like(self.given if self.plan.lies else self.input)

    def result(self, found: Tensor) -> Tensor:
        """What :meth:`new_tensor` gave, when it is filled, with the strides that the contract names."""
        return found if self.plan.lies else torch.empty_like(self.given).copy_(found)

    def guards(self, part: Cut) -> bool:
        """Whether a kernel that sums has to look at each position: some are masked, or a slice is not whole."""
        return self.mask is not None or self.walk.positions % part.size != 0

    def launch(
        self,
        kernel: Any,
        programs: int,
        cut: Cut,
        tensors: Sequence[Tensor | None],
        numbers: Sequence[float] = (),
        **constants: Any,
    ) -> None:
        """One launch of a kernel that walks over the input."""
        plan = self.plan
        common = plan.common.get(kernel.__name__)
        if common is None:
            common = plan.common[kernel.__name__] = {**plan.constants, "BLOCK": cut.block, "CHANNELS": cut.channels}
        launch(kernel, programs, self.given, tensors, numbers, cut.warps, constants, common, plan.known)


@functools.lru_cache(256)
def activation_constants(activation: Activation, eps: float) -> dict[str, Any]:
    """What is compiled in of an activation and of eps: floats that are passed are rounded to 32 bits."""
    first, second = (*activation.parameters, 0.0, 0.0)[:2]
    return {"EPS": eps, "ACT": activation.name, "P0": first, "P1": second}
