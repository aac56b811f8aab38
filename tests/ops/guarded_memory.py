"""Memory between pages that nobody may touch: a value read or written beyond it ends the process."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys

import torch
from torch import Tensor

PAGE = mmap.PAGESIZE
_libc = ctypes.CDLL(None, use_errno=True)


def guarded(tensor: Tensor, at_end: bool) -> Tensor:
    """The same values and strides (of a tensor without gaps) between two pages that nobody may touch."""
    size = tensor.numel() * tensor.element_size()
    if size == 0:
        return tensor
    pages = -(-size // PAGE)
    memory = mmap.mmap(-1, (pages + 2) * PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for page in (0, pages + 1):
        assert _libc.mprotect(ctypes.c_void_p(start + page * PAGE), ctypes.c_size_t(PAGE), 0) == 0
    offset = (pages + 1) * PAGE - size if at_end else PAGE
    flat = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=offset)
    return flat.as_strided(tensor.shape, tensor.stride()).copy_(tensor)


def in_a_process_of_its_own(code: str) -> list[str]:
    """The lines that it prints, each before what it tries: where it ends, the last one says in what."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    tried = result.stdout.splitlines()
    assert result.returncode == 0, f"{result.returncode} in {tried[-1:]}\n{result.stderr[-2000:]}"
    return tried
