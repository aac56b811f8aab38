"""The Triton kernels of FlagGems (https://github.com/flagos-ai/FlagGems) in place of torch's, where it is installed."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from ..cases import Case
from ..contenders import FLAG_GEMS
from .eager import EagerBlock
from .peer import Contender, TorchContender, Unavailable

__all__ = ["FlagGems"]


class FlagGems:
    """What eager torch runs under ``flag_gems.use_gems()``: norm, sum and activation are its kernels."""

    name = FLAG_GEMS

    def build(self, case: Case, device: str = "cpu") -> Contender:
        """Makes the layers."""
        if device != "cuda":
            raise Unavailable("FlagGems' kernels are measured on GPUs only")
        if importlib.util.find_spec("flag_gems") is None:
            raise Unavailable("flag_gems is not installed")
        library: Any = importlib.import_module("flag_gems")
        block = EagerBlock(case).to(device).train(case.training)
        return TorchContender(block, block.norm, case, partial(_in_place_of_torch, library))


@contextmanager
def _in_place_of_torch(library: Any) -> Iterator[None]:
    # cuDNN's batch norm is another operator than the one that it replaces.
    with torch.backends.cudnn.flags(enabled=False), library.use_gems():
        yield
