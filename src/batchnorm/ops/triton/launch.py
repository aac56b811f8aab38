"""One launch of one kernel."""

from __future__ import annotations

from typing import Any

import torch
import triton.language as tl
from torch import Tensor

__all__ = ["ACCUMULATE", "ELEMENTS", "launch"]

#: The dtypes of inputs.
ELEMENTS = frozenset((torch.float32, torch.float64, torch.bfloat16, torch.float16))

#: The dtype that values are computed in, by that of the statistics.
ACCUMULATE = {torch.float32: tl.float32, torch.float64: tl.float64}


def launch(kernel: Any, programs: int, on: Tensor, *arguments: Any, warps: int, **constants: Any) -> None:
    """Have ``programs`` of them computed on the device of ``on``, in its current stream."""
    index = on.get_device()
    if index >= 0 and index != torch.cuda.current_device():
        with torch.cuda.device(index):
            kernel[(programs,)](*arguments, num_warps=warps, **constants)
    else:
        kernel[(programs,)](*arguments, num_warps=warps, **constants)
