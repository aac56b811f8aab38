"""Eager torch by its own kernels on a GPU, where it would take cuDNN's."""

from __future__ import annotations

from functools import partial

import torch

from ..cases import Case
from ..contenders import NO_CUDNN
from .eager import EagerBlock
from .peer import Contender, TorchContender, Unavailable

__all__ = ["NoCudnn"]


class NoCudnn:
    """What eager torch runs under ``torch.backends.cudnn.flags(enabled=False)``."""

    name = NO_CUDNN

    def build(self, case: Case, device: str = "cpu") -> Contender:
        """Makes the layers."""
        if device != "cuda":
            raise Unavailable("cuDNN is for GPUs")
        block = EagerBlock(case).to(device).train(case.training)
        return TorchContender(block, block.norm, case, partial(torch.backends.cudnn.flags, enabled=False))
