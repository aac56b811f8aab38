"""This library's layers."""

from __future__ import annotations

import torch

from ... import nn
from ..cases import Case
from ..contenders import BATCHNORM
from .peer import Contender, TorchContender

__all__ = ["Ours"]

_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_FUSED = {1: nn.BatchNormAct1d, 2: nn.BatchNormAct2d, 3: nn.BatchNormAct3d}


class Ours:
    """``BatchNorm*`` for the norm alone, ``BatchNormAct*`` for all else."""

    name = BATCHNORM

    def build(self, case: Case, device: str = "cpu") -> Contender:
        """Makes the layer."""
        dimensions = max(1, len(case.shape) - 2)
        layer: torch.nn.Module
        if case.activation == "identity" and not case.residual:
            layer = _NORMS[dimensions](case.shape[1])
        else:
            layer = _FUSED[dimensions](case.shape[1], activation=case.activation)
        layer.to(device).train(case.training)
        return TorchContender(layer, layer, case)
