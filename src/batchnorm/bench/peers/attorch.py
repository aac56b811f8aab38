"""The Triton batch norm of attorch (https://github.com/BobMcDear/attorch), where it is installed.

Its layers take float32 parameters and (N, C), (N, C, L) and (N, C, H, W). Newer ones take the activation and the sum as
well; where they do not, torch's follow.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from typing import Any

import torch
from torch import Tensor

from ..cases import Case
from ..contenders import ATTORCH
from .eager import ACTIVATIONS
from .peer import Contender, TorchContender, Unavailable

__all__ = ["Attorch"]


class Attorch:
    """``attorch.BatchNorm1d`` and ``attorch.BatchNorm2d``."""

    name = ATTORCH

    def build(self, case: Case, device: str = "cpu") -> Contender:
        """Makes the layer."""
        if device != "cuda":
            raise Unavailable("attorch's kernels are for GPUs")
        if importlib.util.find_spec("attorch") is None:
            raise Unavailable("attorch is not installed")
        if len(case.shape) > 4:
            raise Unavailable("attorch has no batch norm of volumes")
        library: Any = importlib.import_module("attorch")
        kind = library.BatchNorm2d if len(case.shape) == 4 else library.BatchNorm1d
        block = _Block(kind, case).to(device).train(case.training)
        return TorchContender(block, block.norm, case)


class _Block(torch.nn.Module):
    """Its layer, with torch's sum and activation where the layer has none.

    Args:
        kind: The layer's class.
        case: What is measured.
    """

    def __init__(self, kind: Any, case: Case) -> None:
        super().__init__()
        fuses_sum = "pre_act_add" in inspect.signature(kind.forward).parameters
        # An activation that the layer has must not come before a sum that it has not.
        fuses_activation = "act_func" in inspect.signature(kind.__init__).parameters and (
            fuses_sum or not case.residual
        )
        self.adds = case.residual and fuses_sum
        self.activation = None
        if case.activation == "identity":
            self.norm = kind(case.shape[1])
        elif fuses_activation:
            self.norm = kind(case.shape[1], act_func=case.activation)
        else:
            self.norm, self.activation = kind(case.shape[1]), ACTIVATIONS[case.activation](inplace=True)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """``activation(norm(input) + residual)``."""
        if self.adds:
            output = self.norm(input, residual)
        else:
            output = self.norm(input)
            if residual is not None:
                output = output + residual
        return output if self.activation is None else self.activation(output)
