"""Eager torch: the layer, the sum and the activation as most models write them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import batch_norm

from ..cases import Case
from ..contenders import EAGER
from ..inputs import Inputs
from .peer import Contender, TorchContender

__all__ = ["ACTIVATIONS", "Eager", "EagerBlock", "torchs_kernels"]

_NORMS = {1: torch.nn.BatchNorm1d, 2: torch.nn.BatchNorm2d, 3: torch.nn.BatchNorm3d}
#: What follows the norm, by name; all can work in place.
ACTIVATIONS = {"relu": torch.nn.ReLU, "relu6": torch.nn.ReLU6, "silu": torch.nn.SiLU}


class EagerBlock(torch.nn.Module):
    """``torch.nn.BatchNorm*``, then ``+=`` the residual, then the activation in place, as torchvision has it.

    Args:
        case: What is measured.
    """

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.norm = _NORMS[max(1, len(case.shape) - 2)](case.shape[1])
        self.activation = ACTIVATIONS[case.activation](inplace=True) if case.activation != "identity" else None

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """``activation(norm(input) + residual)``."""
        output = self.norm(input)
        if residual is not None:
            output += residual
        return output if self.activation is None else self.activation(output)


class Eager:
    """Torch as it is."""

    name = EAGER

    def build(self, case: Case, device: str = "cpu") -> Contender:
        """Makes the layers."""
        block = EagerBlock(case).to(device).train(case.training)
        return TorchContender(block, block.norm, case)


def torchs_kernels(case: Case, inputs: Inputs) -> str:
    """Which of torch's kernels eager torch takes for a case, such as ``CudnnBatchNorm`` or ``NativeBatchNorm``."""
    x = inputs.x.detach().requires_grad_()
    buffers = inputs.running_mean.clone(), inputs.running_var.clone()
    output = batch_norm(x, *buffers, inputs.weight, inputs.bias, training=case.training)
    return "" if output.grad_fn is None else output.grad_fn.name().removesuffix("0").removesuffix("Backward")
