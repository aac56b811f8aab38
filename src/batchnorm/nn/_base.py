"""What all norm layers share: buffers that torch's checkpoints fit, and the way from a layer to the function."""

from __future__ import annotations

from typing import Protocol, TypeAlias, TypeGuard

import torch
import torch.fx
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.overrides import handle_torch_function, has_torch_function_variadic

from ..activation import ActivationLike
from ..errors import ArgumentError, ShapeError
from ..functional import Nonfinite, batch_norm, check_nonfinite
from ._tracing import as_one_node

__all__ = ["Norm", "Sink", "State", "is_batch_norm"]

State: TypeAlias = "tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]"


def is_batch_norm(module: torch.nn.Module) -> TypeGuard[_NormBase]:
    """Whether a module is a batch norm of torch's or ours, or of a class derived from one.

    Instance norms, which share torch's base, are none: their statistics are of one sample.
    """
    return isinstance(module, _NormBase) and not isinstance(module, _InstanceNorm)


class Sink(Protocol):
    """What takes a layer's batches in place of its running buffers, while ``accumulate_statistics`` is on."""

    def buffers(
        self, input: Tensor, mask: Tensor | None, mean: Tensor, var: Tensor, seen: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, variance and count for one call to move in their place, from 0 and by the cumulative average."""

    def counted(self, count: Tensor) -> None:
        """The last call's statistics are of ``count`` values a channel, of more than its own input (other ranks)."""


class Norm(_NormBase):
    """A norm layer with torch's parameters, buffers and ``state_dict`` (a mixin: torch's class may follow it).

    A subclass sets ``dims``: the numbers of dimensions its input may have.
    """

    dims: tuple[int, ...]
    # On the class: layers pickled before these existed have none.
    nonfinite: Nonfinite = "skip"
    _sink: Sink | None = None

    # Whether the count of batches is more than the average's: what sets statistics anew then leaves it.
    counts_training: bool = False

    # The function behind the layer. A subclass that normalises otherwise has a method of this signature.
    _batch_norm = staticmethod(batch_norm)

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
        bias: bool = True,
        nonfinite: Nonfinite = "skip",
    ) -> None:
        if num_features < 0:
            raise ArgumentError(f"num_features={num_features} is negative.", "give the number of channels.")
        check_nonfinite(nonfinite)
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype)
        if not bias:
            self.register_parameter("bias", None)
        self.nonfinite = nonfinite

    def reset_parameters(self) -> None:
        """Gamma = 1, beta = 0, and the running statistics of no batches: mean 0, variance 1."""
        self.reset_running_stats()
        if self.weight is not None:
            torch.nn.init.ones_(self.weight)
        if self.bias is not None:
            torch.nn.init.zeros_(self.bias)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() not in self.dims:
            expected = " or ".join(f"{dim}D" for dim in self.dims)
            raise ShapeError(
                f"expected {expected} input (got {input.dim()}D input of shape {tuple(input.shape)}).",
                f"use the layer for (N, C, *spatial) input of {input.dim()} dimensions, or reshape."
                if 2 <= input.dim() <= 5
                else "give (N, C, *spatial) input.",
            )

    def _normalize(
        self,
        input: Tensor,
        residual: Tensor | None,
        mask: Tensor | None,
        activation: ActivationLike,
    ) -> Tensor:
        if isinstance(input, torch.fx.Proxy):
            return as_one_node(self, input, residual=residual, mask=mask)
        if has_torch_function_variadic(input, residual):
            # As torch's functions do: of a norm that waits, the operators below would get a tensor without values.
            watched = (input, residual)
            return handle_torch_function(Norm._normalize, watched, self, input, residual, mask, activation)
        if input.dim() not in self.dims:
            self._check_input_dim(input)
        return self._by_state(self._state(), input, residual, mask, activation, self.training)

    def _state(self) -> State:
        """Weight, bias, running mean and variance, and the count of batches, as they are now."""
        # Out of the module's dictionaries: by attribute each costs 0.35 µs, for torch.nn.Module looks for it in vain
        # before. What is not there (parametrized, pruned, a replica's) is an attribute after all.
        parameters, buffers = self._parameters, self._buffers
        try:
            weight, bias = parameters["weight"], parameters["bias"]
        except KeyError:
            weight, bias = self.weight, self.bias
        try:
            mean, var, seen = buffers["running_mean"], buffers["running_var"], buffers["num_batches_tracked"]
        except KeyError:
            mean, var, seen = self.running_mean, self.running_var, self.num_batches_tracked
        return weight, bias, mean, var, seen

    def _by_state(
        self,
        state: State,
        input: Tensor,
        residual: Tensor | None,
        mask: Tensor | None,
        activation: ActivationLike,
        training: bool,
        moves: bool = True,  # the running buffers, in training
    ) -> Tensor:
        weight, bias, mean, var, seen = state
        momentum = self.momentum
        if training:
            if not (self.track_running_stats and moves):
                mean = var = None
        elif mean is None and var is None:
            training = True
        if momentum is None and seen is None:
            momentum = 0.0  # a layer without a count of its batches leaves its buffers as they are, as torch's does
        if self._sink is not None and training and mean is not None and var is not None:
            mean, var, seen = self._sink.buffers(input, mask, mean, var, seen)
            momentum = None
        return self._batch_norm(
            input,
            mean,
            var,
            weight,
            bias,
            training,
            momentum,
            self.eps,
            activation=activation,
            residual=residual,
            mask=mask,
            nonfinite=self.nonfinite,
            num_batches_tracked=seen,
        )

    def extra_repr(self) -> str:
        """Arguments as given; those of ours only where they differ from the default."""
        shown = (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"bias={self.bias is not None}, track_running_stats={self.track_running_stats}"
        )
        return shown if self.nonfinite == "skip" else f"{shown}, nonfinite={self.nonfinite!r}"
