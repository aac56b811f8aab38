"""Eager torch: the layer, the sum and the activation as most models write them."""

from __future__ import annotations

import torch
from torch import Tensor

from ..cases import Case
from ..contenders import EAGER
from .peer import Contender, TorchContender

__all__ = ["Eager", "EagerBlock"]

_NORMS = {1: torch.nn.BatchNorm1d, 2: torch.nn.BatchNorm2d, 3: torch.nn.BatchNorm3d}
_ACTIVATIONS = {"relu": torch.nn.ReLU, "relu6": torch.nn.ReLU6, "silu": torch.nn.SiLU}


class EagerBlock(torch.nn.Module):
    """``torch.nn.BatchNorm*``, then ``+=`` the residual, then the activation in place, as torchvision has it.

    Args:
        case: What is measured.
    """

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.norm = _NORMS[max(1, len(case.shape) - 2)](case.shape[1])
        self.activation = _ACTIVATIONS[case.activation](inplace=True) if case.activation != "identity" else None

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """``activation(norm(input) + residual)``."""
        output = self.norm(input)
        if residual is not None:
            output += residual
        return output if self.activation is None else self.activation(output)


class Eager:
    """Torch as it is."""

    name = EAGER

    def build(self, case: Case) -> Contender:
        """Makes the layers."""
        block = EagerBlock(case).train(case.training)
        return TorchContender(block, block.norm, case)
