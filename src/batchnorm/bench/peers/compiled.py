"""``torch.compile`` of what eager torch runs."""

from __future__ import annotations

import os
import shutil
from functools import cache

import torch

from ..cases import Case
from ..contenders import COMPILE
from .eager import EagerBlock
from .peer import Contender, TorchContender, Unavailable

__all__ = ["Compiled", "why_no_compiler"]


@cache
def why_no_compiler() -> str:
    """Why ``torch.compile`` has no C++ compiler on this machine; empty where there is one."""
    found = [name for name in (os.environ.get("CXX"), "c++", "g++", "clang++", "cl") if name and shutil.which(name)]
    return "" if found else "torch.compile needs a C++ compiler, and there is none"


class Compiled:
    """``torch.compile(fullgraph=True, dynamic=False)``; the time to compile is not measured."""

    name = COMPILE

    def build(self, case: Case, device: str = "cpu") -> Contender:
        """Makes the layers; they are compiled when they first run."""
        if device == "cpu" and why_no_compiler():
            raise Unavailable(why_no_compiler())
        # A former case's graphs would count against the limit on recompilations.
        torch._dynamo.reset()
        block = EagerBlock(case).to(device).train(case.training)
        return TorchContender(torch.compile(block, fullgraph=True, dynamic=False), block.norm, case)
