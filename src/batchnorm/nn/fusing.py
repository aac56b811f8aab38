"""``FusingBatchNorm1d`` / ``2d`` / ``3d``: a batch norm that is computed with the sum and the activation after it."""

from __future__ import annotations

import sys
import weakref
from typing import Any

import torch
from torch import Tensor

from ..ops import direct_kernels
from ._norm_call import NormCall
from ._pending import Pending
from .batchnorm import BatchNorm1d, BatchNorm2d, BatchNorm3d, PlainNorm

__all__ = ["FusingBatchNorm1d", "FusingBatchNorm2d", "FusingBatchNorm3d"]


def _runs_between_compiled_code() -> bool:
    # Of a graph that a sink breaks, frames run that the compiler skips; what they give out, it traces on with.
    return "torch._dynamo" in sys.modules and torch._C._dynamo.eval_frame.get_eval_frame_callback() is not None


class _FusingBatchNorm(PlainNorm):
    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        """Gives what :class:`BatchNorm1d` gives, computed when it is first used.

        With a mask, in a graph that is being compiled or exported, in a transform and in forward mode it is computed
        at once.
        """
        if torch.compiler.is_compiling() or (self._sink is not None and _runs_between_compiled_code()):
            return super().forward(input, mask)
        self._settle()  # an earlier call moves the running statistics before this one does
        if mask is not None or not self._can_wait(input):
            return super().forward(input, mask)
        call = NormCall(self, input)
        self.__dict__["_waiting"] = weakref.ref(call)
        return Pending(call)

    def _settle(self) -> None:
        """Compute the last call, if it still waits."""
        last = self.__dict__.get("_waiting")
        waiting = None if last is None else last()
        if waiting is not None and not waiting.ran:
            waiting.settle()

    # Whoever looks at the running statistics sees those after the last call.

    def __getattr__(self, name: str) -> Any:
        if name in ("running_mean", "running_var", "num_batches_tracked") and not torch.compiler.is_compiling():
            self._settle()
        return super().__getattr__(name)

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled."""
        self._settle()
        return {name: value for name, value in self.__dict__.items() if name != "_waiting"}

    def _save_to_state_dict(self, *arguments: Any) -> None:
        self._settle()
        super()._save_to_state_dict(*arguments)

    def _can_wait(self, input: Tensor) -> bool:
        # What the norm would refuse, it refuses at once, where the stack still names this layer.
        return (
            type(input) in (torch.Tensor, torch.nn.Parameter)
            # Hooks get what they get of any norm; tensors of inference mode have no versions to compare.
            and not (self._forward_hooks or self._backward_hooks or self._backward_pre_hooks or input.is_inference())
            and input.dim() in self.dims
            and input.shape[1] == self.num_features
            and input.numel() > self.num_features
            and input.is_floating_point()
            # The output of a reentrant checkpoint, whose first pass looks like this, has to be there when it ends.
            and (torch.is_grad_enabled() or not self.training)
            and direct_kernels(input, None, self.training) is not None
        )


class FusingBatchNorm1d(_FusingBatchNorm, BatchNorm1d):
    r"""A :class:`BatchNorm1d` that is computed in one pass with the sum and the activation that follow it.

    .. math:: y = \mathrm{activation}\left(\frac{x - \mathrm{E}[x]}{\sqrt{\mathrm{Var}[x] + \epsilon}} \cdot \gamma
              + \beta + \mathrm{residual}\right)

    The code around it stays as it is: ``F.relu(norm(x) + residual)``, ``out += residual; out = self.activation(out)``,
    a ``torch.nn.Sequential``. Its output is a tensor that has not been computed yet. A sum with a tensor of its shape
    and dtype leaves it so; then an activation (the modules, functions and methods of torch that
    :class:`batchnorm.Activation` names) computes all of it, and keeps for the backward pass what
    :class:`BatchNormAct1d` keeps. Any other use computes the norm's output and goes on with that, so results are those
    of :class:`BatchNorm1d` whatever follows. :func:`batchnorm.fuse` puts these layers where they gain something.

    Arguments, shapes and errors are those of :class:`BatchNorm1d`. So is a result that is never used: the running
    statistics have moved by the time the tensor is gone.

    Raises:
        RuntimeError: The input, or the sum's other side, was modified in place before the output was used.

    Example:
        >>> norm, x = FusingBatchNorm1d(3), torch.randn(8, 3)
        >>> y = torch.relu(norm(x) + x)
        >>> y.grad_fn.name()
        '_BatchNormBackward'
        >>> isinstance(norm, torch.nn.BatchNorm1d), int(norm.num_batches_tracked)
        (True, 1)
    """


class FusingBatchNorm2d(_FusingBatchNorm, BatchNorm2d):
    """A :class:`BatchNorm2d` that is computed with what follows it; see :class:`FusingBatchNorm1d`.

    Example:
        >>> block = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), FusingBatchNorm2d(8), torch.nn.SiLU())
        >>> block(torch.randn(2, 3, 5, 5)).grad_fn.name()
        '_BatchNormBackward'
    """


class FusingBatchNorm3d(_FusingBatchNorm, BatchNorm3d):
    """A :class:`BatchNorm3d` that is computed with what follows it; see :class:`FusingBatchNorm1d`.

    Example:
        >>> FusingBatchNorm3d(2)(torch.randn(2, 2, 3, 4, 5)).sigmoid().grad_fn.name()
        '_BatchNormBackward'
    """
