"""The kernels under the names and signatures of :mod:`batchnorm.ops.eager`: what is launched, on what.

Nothing here waits for the device or asks it anything, and all memory is torch's allocator's: a CUDA graph captures it.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...activation import Activation
from .. import eager
from ..bits import bits_size, no_bits
from ..eager import statistics_dtype
from ..running import is_recomputation
from .gradients import finish_sums, input_gradient, partial_sums
from .launch import ACCUMULATE, ELEMENTS, launch
from .layout import Walk, walk
from .moments import finish_moments, partial_moments
from .normalize import normalize as normalize_kernel
from .running import move_running
from .tiles import FINISH, Cut, cut, fits_whole, power_of_two
from .whole import whole_backward, whole_forward

__all__ = [
    "backward",
    "double_moments",
    "forward",
    "grad_input",
    "grad_sums",
    "moments",
    "normalize",
    "train",
    "update_running",
]

Buffers = tuple[Tensor, Tensor, Tensor | None]


class _Pass:
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


def _activation(activation: Activation, eps: float) -> dict[str, Any]:
    first, second = (*activation.parameters, 0.0, 0.0)[:2]
    return {"EPS": eps, "ACT": activation.name, "P0": first, "P1": second}


def moments(input: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`eager.moments`."""
    if input.numel() == 0:
        return eager.moments(input, mask)
    here = _Pass(input, mask)
    return _moments(here, here.dtype)


def double_moments(input: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`eager.double_moments`."""
    if input.numel() == 0:
        return eager.double_moments(input, mask)
    return _moments(_Pass(input, mask), torch.float64)


def _moments(here: _Pass, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    found = here.like.new_empty((), dtype=torch.int64), here.new_vector(dtype), here.new_vector(dtype)
    whole = here.fits_whole("whole_forward")
    if whole is not None:
        nothing = _activation(Activation("identity"), 0.0)
        programs = whole.blocks(here.walk.channels)
        tensors = (here.input, None, here.mask, None, None, None, None)
        here.launch(whole_forward, programs, whole, *tensors, *found, *here.walk.extent, **nothing)
        return found
    part = here.cut("partial_moments")
    shape = (part.slices, here.walk.channels)
    counts = None if here.mask is None else here.like.new_empty(shape, dtype=here.dtype)
    means, squares = here.like.new_empty((2, *shape), dtype=here.dtype).unbind()
    parts = (here.input, here.mask, counts, means, squares)
    guard = here.mask is not None or here.walk.positions % part.size != 0
    programs = part.slices * part.blocks(here.walk.channels)
    here.launch(partial_moments, programs, part, *parts, *here.walk.extent, part.steps, GUARD=guard)
    launch(
        finish_moments,
        -(-here.walk.channels // FINISH.values),
        here.like,
        *parts,
        *found,
        *here.walk.extent,
        part.slices,
        part.size,
        **here.constants,
        SLICES=power_of_two(part.slices),
        CHANNELS=FINISH.values,
        warps=FINISH.warps,
    )
    return found


def normalize(
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    eps: float,
    activation: Activation,
) -> Tensor:
    """As :func:`eager.normalize`."""
    if input.numel() == 0:
        return eager.normalize(input, mean, var, weight, bias, residual, mask, eps, activation)
    here = _Pass(input, mask)
    return _normalize(here, mean, var, weight, bias, residual, None, None, _activation(activation, eps))


def _normalize(
    here: _Pass,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    bits: Tensor | None,
    move: _Move | None,
    layer: dict[str, Any],
) -> Tensor:
    output = here.new_tensor()
    piece = here.cut("normalize", bits)
    tiles = piece.slices * piece.blocks(here.walk.channels)
    vectors = (*here.statistics(mean, var), *here.parameters(weight, bias))
    tensors = (here.input, here.ordered_or_none(residual), here.mask, *vectors, output, bits)
    moved = (None, None, None, None, 0.0, 0.0) if move is None else move.arguments
    constants = {"CUMULATIVE": False, "SKIP": False, "MOVED": 1} if move is None else move.constants
    programs = tiles + (move is not None)
    arguments = (*tensors, *moved, *here.walk.extent, tiles)
    here.launch(normalize_kernel, programs, piece, *arguments, **constants, **layer, STRIDE=piece.stride)
    return here.result(output)


def forward(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    eps: float,
    activation: Activation,
    keep_bits: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As :func:`eager.forward`."""
    if input.numel() == 0:
        return eager.forward(input, weight, bias, residual, mask, eps, activation, keep_bits)
    return _train(input, weight, bias, residual, mask, None, None, False, eps, activation, keep_bits)


def train(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    num_batches_tracked: Tensor | None,
    momentum: float | None,
    skip_nonfinite: bool,
    eps: float,
    activation: Activation,
    keep_bits: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As :func:`eager.train`."""
    buffers: Buffers | None = None
    if running_mean is not None and running_var is not None:
        buffers = (running_mean, running_var, num_batches_tracked)
    if input.numel() == 0:
        buffers_or_none = (None, None, None) if buffers is None else buffers
        settings = (momentum, skip_nonfinite, eps, activation, keep_bits)
        return eager.train(input, weight, bias, residual, mask, *buffers_or_none, *settings)
    if mask is None and input.numel() == input.shape[1]:
        raise RuntimeError(f"batchnorm: one value a channel in training, of shape {tuple(input.shape)}.")
    if is_recomputation():
        buffers = None
    return _train(input, weight, bias, residual, mask, buffers, momentum, skip_nonfinite, eps, activation, keep_bits)


class _Move:
    """The running buffers, and how they are to move.

    They are written to past torch, which has to know of it, and before: it refuses what must not be written to.
    """

    def __init__(
        self, buffers: Buffers, count: Tensor | int, momentum: float | Tensor | None, skip_nonfinite: bool
    ) -> None:
        self._buffers = [buffer for buffer in buffers if buffer is not None]
        channels = buffers[0].numel()
        torch.autograd.graph.increment_version(self._buffers)
        # A vector with gaps is moved in a copy.
        self._written = [buffer.contiguous() for buffer in self._buffers]
        number = momentum if isinstance(momentum, float) else 0.0
        rounded = _as_float32(number)
        self.momentum = momentum if isinstance(momentum, Tensor) else None
        written = self._written if buffers[2] is not None else (*self._written, None)
        self.arguments = (*written, count, rounded, number - rounded)
        block = min(power_of_two(channels), _MOVED_AT_ONCE)
        self.constants = {"CUMULATIVE": momentum is None, "SKIP": skip_nonfinite, "MOVED": block}

    def launch(self, mean: Tensor, var: Tensor) -> None:
        """Move them in a launch of their own; elsewhere one of another kernel's programs does."""
        *buffers, count, momentum, rest = self.arguments
        settings = dict(self.constants)
        block = settings.pop("MOVED")
        by = (self.momentum, momentum, rest)
        arguments = (*buffers, count, mean.contiguous(), var.contiguous(), *by, mean.numel())
        launch(move_running, 1, mean, *arguments, **settings, BLOCK=block, warps=4)

    def finish(self) -> None:
        """Write back what was moved in a copy."""
        for buffer, written in zip(self._buffers, self._written, strict=True):
            if buffer is not written:
                buffer.copy_(written)


_MOVED_AT_ONCE = 1024  # channels


@functools.lru_cache(256)
def _as_float32(number: float) -> float:
    return float(np.float32(number))


def update_running(
    running_mean: Tensor,
    running_var: Tensor,
    num_batches_tracked: Tensor | None,
    count: Tensor | int,
    mean: Tensor,
    var: Tensor,
    momentum: float | Tensor,
    skip_nonfinite: bool,
) -> None:
    """As :func:`batchnorm.ops.running.update_running`, in one launch."""
    if is_recomputation() or (isinstance(count, int) and count < 2):
        return
    move = _Move((running_mean, running_var, num_batches_tracked), count, momentum, skip_nonfinite)
    move.launch(mean, var)
    move.finish()


def _train(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    buffers: Buffers | None,
    momentum: float | None,
    skip_nonfinite: bool,
    eps: float,
    activation: Activation,
    keep_bits: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    here = _Pass(input, mask)
    layer = _activation(activation, eps)
    # Whatever does not fit is refused before a buffer moves.
    here.parameters(weight, bias)
    residual = here.ordered_or_none(residual)
    if buffers is not None:
        here.statistics(*buffers[:2])
        if buffers[2] is not None and buffers[2].device != here.device:
            raise RuntimeError(f"batchnorm: num_batches_tracked is on {buffers[2].device}.")
    bits = here.like.new_empty(bits_size(input), dtype=torch.uint8) if keep_bits else None
    kept = no_bits(input) if bits is None else bits
    whole = here.fits_whole("whole_forward")
    if whole is None:
        count, mean, var = _moments(here, here.dtype)
        move = None if buffers is None else _Move(buffers, count, momentum, skip_nonfinite)
        output = _normalize(here, mean, var, weight, bias, residual, bits, move, layer)
    else:
        output = here.new_tensor()
        count, mean, var = here.like.new_empty((), dtype=torch.int64), here.new_vector(), here.new_vector()
        move = None if buffers is None else _Move(buffers, count, momentum, skip_nonfinite)
        tensors = (here.input, residual, here.mask, *here.parameters(weight, bias), output, bits)
        arguments = (*tensors, count, mean, var, *here.walk.extent)
        here.launch(whole_forward, whole.blocks(here.walk.channels), whole, *arguments, **layer)
        output = here.result(output)
        if move is not None:
            move.launch(mean, var)
    if move is not None:
        move.finish()
    return output, count, mean, var, kept


def backward(
    grad_output: Tensor,
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    bits: Tensor | None,
    count: Tensor | None,
    eps: float,
    activation: Activation,
    wanted: Sequence[bool] = (True, True, True, True),
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """As :func:`eager.backward`."""
    layer = (mean, var, weight, bias, residual)
    if input.numel() == 0:
        return eager.backward(grad_output, input, *layer, mask, bits, count, eps, activation, wanted)
    here = _Gradients(grad_output, input, *layer, mask, bits, eps, activation)
    sums = wanted[1] or wanted[2] or (wanted[0] and count is not None)
    whole = here.pass_.fits_whole("whole_backward") if sums else None
    sum_dz: Tensor | None
    sum_dz_standardized: Tensor | None
    if whole is not None:
        dx, dz, sum_dz, sum_dz_standardized = here.whole(whole, count, wanted[0], wanted[3])
    else:
        sum_dz, sum_dz_standardized = here.sums() if sums else (None, None)
        dx, dz = here.input(count, sum_dz, sum_dz_standardized, wanted[0], wanted[3])
    return dx, sum_dz_standardized if wanted[1] else None, sum_dz if wanted[2] else None, dz


def grad_sums(
    grad_output: Tensor,
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    bits: Tensor | None,
    eps: float,
    activation: Activation,
) -> tuple[Tensor, Tensor]:
    """As :func:`eager.grad_sums`."""
    layer = (mean, var, weight, bias, residual, mask, bits, eps, activation)
    if input.numel() == 0:
        return eager.grad_sums(grad_output, input, *layer)
    here = _Gradients(grad_output, input, *layer)
    whole = here.pass_.fits_whole("whole_backward")
    return here.sums() if whole is None else here.whole(whole, None, False, False)[2:]


def grad_input(
    grad_output: Tensor,
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    bits: Tensor | None,
    count: Tensor | None,
    sum_dz: Tensor | None,
    sum_dz_standardized: Tensor | None,
    eps: float,
    activation: Activation,
    keep_residual: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """As :func:`eager.grad_input`."""
    layer = (mean, var, weight, bias, residual, mask, bits)
    if input.numel() == 0:
        statistics = (count, sum_dz, sum_dz_standardized)
        return eager.grad_input(grad_output, input, *layer, *statistics, eps, activation, keep_residual)
    here = _Gradients(grad_output, input, *layer, eps, activation)
    dx, dz = here.input(count, sum_dz, sum_dz_standardized, True, keep_residual)
    assert dx is not None
    return dx, dz


class _Gradients:
    """A backward pass: what all of its kernels take."""

    def __init__(
        self,
        grad_output: Tensor,
        input: Tensor,
        mean: Tensor,
        var: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        mask: Tensor | None,
        bits: Tensor | None,
        eps: float,
        activation: Activation,
    ) -> None:
        self.pass_ = _Pass(input, mask)
        self.grad_output = grad_output
        # dz is dy: there is nothing to compute.
        self.same = activation.name == "identity" and mask is None and grad_output.dtype == input.dtype
        self.bits = bits
        self.tensors = (
            self.pass_.ordered(grad_output),
            self.pass_.input,
            self.pass_.ordered_or_none(residual),
            self.pass_.mask,
            *self.pass_.statistics(mean, var),
            *self.pass_.parameters(weight, bias),
            bits,
        )
        self.layer = _activation(activation, eps)

    def _results(self, wants_input: bool, wants_residual: bool) -> tuple[Tensor | None, Tensor | None]:
        dx = self.pass_.new_tensor() if wants_input else None
        return dx, self.pass_.new_tensor() if wants_residual and not self.same else None

    def _finished(
        self, dx: Tensor | None, dz: Tensor | None, wants_residual: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        dx = None if dx is None else self.pass_.result(dx)
        if wants_residual and self.same:
            return dx, self.grad_output
        return dx, None if dz is None else self.pass_.result(dz)

    def whole(
        self, cut: Cut, count: Tensor | None, wants_input: bool, wants_residual: bool
    ) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor]:
        """All gradients in one launch."""
        dx, dz = self._results(wants_input, wants_residual)
        sums = self.pass_.new_vector(), self.pass_.new_vector()
        programs = cut.blocks(self.pass_.walk.channels)
        arguments = (*self.tensors, count, dx, dz, *sums, *self.pass_.walk.extent)
        self.pass_.launch(whole_backward, programs, cut, *arguments, **self.layer)
        return *self._finished(dx, dz, wants_residual), *sums

    def sums(self) -> tuple[Tensor, Tensor]:
        """Σdz and Σdz·x̂."""
        here = self.pass_
        part = here.cut("partial_sums", self.bits)
        channels = here.walk.channels
        parts = here.like.new_empty((2, part.slices, channels), dtype=here.dtype).unbind()
        programs = part.slices * part.blocks(channels)
        arguments = (*self.tensors, *parts, *here.walk.extent, part.steps)
        here.launch(partial_sums, programs, part, *arguments, **self.layer, STRIDE=part.stride)
        sums = here.new_vector(), here.new_vector()
        sizes = {"SLICES": power_of_two(part.slices), "CHANNELS": FINISH.values}
        programs = -(-channels // FINISH.values)
        launch(finish_sums, programs, here.like, *parts, *sums, channels, part.slices, **sizes, warps=FINISH.warps)
        return sums

    def input(
        self,
        count: Tensor | None,
        sum_dz: Tensor | None,
        sum_dz_standardized: Tensor | None,
        wants_input: bool,
        wants_residual: bool,
    ) -> tuple[Tensor | None, Tensor | None]:
        """The gradients of input and residual from the sums; without all of these, of evaluation."""
        if count is None or sum_dz is None or sum_dz_standardized is None:
            count = sum_dz = sum_dz_standardized = None
        dx, dz = self._results(wants_input, wants_residual)
        if dx is not None or dz is not None:
            piece = self.pass_.cut("input_gradient", self.bits)
            programs = piece.slices * piece.blocks(self.pass_.walk.channels)
            statistics = (count, *self.pass_.statistics(sum_dz, sum_dz_standardized))
            arguments = (*self.tensors, *statistics, dx, dz, *self.pass_.walk.extent)
            self.pass_.launch(input_gradient, programs, piece, *arguments, **self.layer, STRIDE=piece.stride)
        return self._finished(dx, dz, wants_residual)
