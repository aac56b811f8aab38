"""The GPU kernels, written in Triton: whether they serve, why, and the kernels themselves when a tensor asks for them.

Triton is imported with the first tensor on a GPU and not before: that takes a good part of a second, and who has no GPU
pays nothing. CUDA and ROCm are both ``cuda`` to torch, and both are served.

``BATCHNORM_TRITON_KERNELS=0`` in the environment leaves the kernels out, as if Triton were not installed; it is read
once, when the library is imported.
"""

from __future__ import annotations

import functools
import importlib
import os
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from ...activation import IDENTITY
from ...errors import ArgumentError

__all__ = ["availability", "layer_kernels", "operator_kernels"]

_OLDEST_CAPABILITY = (7, 5)  # of NVIDIA's GPUs, the oldest that Triton compiles for


def _turned_off() -> bool:
    wish = os.environ.get("BATCHNORM_TRITON_KERNELS", "")
    if wish not in ("", "0", "1"):
        raise ArgumentError(
            f"the environment variable BATCHNORM_TRITON_KERNELS is {wish!r}.",
            "0 leaves the Triton kernels out; unset it, or 1, to use them on GPUs.",
        )
    return wish == "0"


_is_off = _turned_off()


@functools.cache
def _missing() -> str | None:
    """Why no GPU of this process is served; None where that is up to the GPU."""
    if _is_off:
        return "turned off by BATCHNORM_TRITON_KERNELS=0"
    if find_spec("triton") is None:
        return "Triton is not installed; torch builds for CUDA and ROCm bring it"
    return None


@functools.cache
def _serves(index: int) -> tuple[bool, str]:
    """Whether the kernels serve the GPU of this index, and why."""
    missing = _missing()
    if missing is not None:
        return False, missing
    if not torch.cuda.is_available():  # nor for a fake tensor of a GPU, on a machine that has none
        built = torch.version.cuda or torch.version.hip
        return False, "torch sees no GPU" if built else f"torch {torch.__version__} was built for no GPU"
    if index >= torch.cuda.device_count():
        return False, f"torch sees no GPU {index}"
    name = torch.cuda.get_device_name(index)
    if torch.version.hip is None and torch.cuda.get_device_capability(index) < _OLDEST_CAPABILITY:
        return False, f"{name} is older than what Triton compiles for (compute capability 7.5)"
    try:
        version = importlib.import_module("triton").__version__
        _try(torch.device("cuda", index))
    except Exception as error:  # a compiler that is not there, a folder that cannot be written to, a chip too new
        return False, f"Triton does not work: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return True, f"Triton {version} on {name}"


def _try(device: torch.device) -> None:
    """One small launch: whether kernels compile here, and are launched, is known by nothing less."""
    computing = importlib.import_module(f"{__name__}.compute")
    if not torch.cuda.is_current_stream_capturing():  # a graph would have it in, and may not load what is new
        with _disable_current_modes():  # a fake tensor may be the first to come, and proves nothing
            ones = torch.ones((1, 1), device=device)
            computing.normalize(ones, ones[0], ones[0], None, None, None, None, 1e-5, IDENTITY)


# By the GPU's index: what layers call, and what operators call. Asked at every call.
_modules: dict[int, tuple[ModuleType, ModuleType] | None] = {}


def _both(input: Tensor) -> tuple[ModuleType, ModuleType] | None:
    if not input.is_cuda:
        return None
    index = input.get_device()
    if index not in _modules:
        served = _serves(index)[0]
        here = (importlib.import_module(f"{__name__}.{name}") for name in ("kernels", "compute"))
        _modules[index] = (next(here), next(here)) if served else None
    return _modules[index] if input.layout is torch.strided else None


def layer_kernels(input: Tensor) -> ModuleType | None:
    """What layers call for this input, as :mod:`batchnorm.ops.eager`; None: it is on no GPU that is served."""
    both = _both(input)
    return None if both is None else both[0]


def operator_kernels(input: Tensor) -> ModuleType | None:
    """As :func:`layer_kernels`, for the operators: what computes, whoever watches."""
    both = _both(input)
    return None if both is None else both[1]


def availability() -> tuple[bool, str]:
    """Whether the kernels serve this machine's current GPU, and why, in one line. It starts that GPU."""
    return _serves(torch.cuda.current_device() if torch.cuda.is_available() else 0)
