"""The gradients under the names and signatures of :mod:`batchnorm.ops.eager`: what is launched, on what."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...activation import Activation
from .. import eager
from ..bits import bits_size
from .gradients import finish_sums, input_gradient, partial_sums
from .launch import launch
from .passes import Pass, activation_constants
from .tiles import Cut
from .whole import whole_backward

__all__ = ["backward", "grad_input", "grad_sums"]


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
    whole = here.pass_.plan.fits_whole("whole_backward") if sums else None
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
    whole = here.pass_.plan.fits_whole("whole_backward")
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
        self.pass_ = Pass(input, mask)
        self.grad_output = grad_output
        # dz is dy: there is nothing to compute.
        self.same = activation.name == "identity" and mask is None and grad_output.dtype == input.dtype
        if bits is not None and (
            bits.dtype != torch.uint8 or bits.numel() != bits_size(input) or bits.device != input.device
        ):
            raise RuntimeError(f"batchnorm: these bits are not of this input: {bits.dtype}, {bits.numel()} of them.")
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
        self.layer = activation_constants(activation, eps)

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
        _check_count(count)
        here = self.pass_
        dx, dz = self._results(wants_input, wants_residual)
        sums = here.new_vector(), here.new_vector()
        tensors = (*self.tensors, count, dx, dz, *sums)
        here.launch(whole_backward, cut.blocks(here.walk.channels), cut, tensors, here.walk.extent, **self.layer)
        return *self._finished(dx, dz, wants_residual), *sums

    def sums(self) -> tuple[Tensor, Tensor]:
        """Σdz and Σdz·x̂."""
        here, channels = self.pass_, self.pass_.walk.channels
        part = here.plan.cut("partial_sums")
        parts = here.new_parts(part.slices), here.new_parts(part.slices)
        programs = part.slices * part.blocks(channels)
        numbers = (*here.walk.extent, part.steps)
        tensors = (*self.tensors, *parts)
        constants = {**self.layer, "GUARD": here.guards(part), "PLACES": part.places}
        here.launch(partial_sums, programs, part, tensors, numbers, **constants)
        sums = here.new_vector(), here.new_vector()
        merge, sizes = here.plan.merge(part.slices), (channels, part.slices)
        constants = {"SLICES": merge.slices, "CHANNELS": merge.channels}
        programs, tensors = -(-channels // merge.channels), (*parts, *sums)
        launch(finish_sums, programs, here.given, tensors, sizes, merge.warps, constants, None, here.plan.known)
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
        _check_count(count)
        here = self.pass_
        dx, dz = self._results(wants_input, wants_residual)
        if dx is not None or dz is not None:
            piece = here.plan.cut("input_gradient")
            programs = piece.slices * piece.blocks(here.walk.channels)
            tensors = (*self.tensors, count, *here.statistics(sum_dz, sum_dz_standardized), dx, dz)
            constants = {**self.layer, "PLACES": piece.places}
            here.launch(input_gradient, programs, piece, tensors, here.walk.extent, **constants)
        return self._finished(dx, dz, wants_residual)


def _check_count(count: Tensor | None) -> None:
    if count is not None and (count.dtype != torch.int64 or count.numel() != 1):
        raise RuntimeError(f"batchnorm: the count is {count.dtype} of shape {tuple(count.shape)}.")
