"""Which kernel serves which tensor, and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from . import cpu, eager, native, ranks, running, triton

__all__ = [
    "Backend",
    "backends",
    "enter",
    "explain",
    "kernels",
    "primitives",
    "python_kernels",
    "rank_kernels",
    "running_mover",
]

# The compiled CPU kernels, once they have entered. They need the operators, which need this file.
_compiled: ModuleType | None = None


@dataclass(frozen=True)
class Backend:
    """A set of kernels, and whether it serves this machine.

    Attributes:
        name: ``"cpu"`` (the compiled kernels), ``"triton"`` (those for GPUs), ``"native"`` (torch's own) or ``"eager"``
            (plain torch operations).
        available: Whether it can serve on this machine.
        serves: What it is used for.
        reason: Why it is available, or why not.
    """

    name: str
    available: bool
    serves: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {'yes' if self.available else 'no'} ({self.serves}; {self.reason})"


def kernels(input: Tensor, mask: Tensor | None, evaluation: bool = False) -> ModuleType:
    """The module whose functions serve this input; all have the signatures of :mod:`batchnorm.ops.eager`.

    Asked at every call, so the cheapest question comes first. With ``evaluation`` it is ``normalize`` that is meant,
    without it any other function, ``backward`` for evaluation included.
    """
    if _compiled is not None and input.is_cpu and input.layout is torch.strided:
        return _compiled
    served = triton.layer_kernels(input)
    return _plain(input, mask, evaluation) if served is None else served


def python_kernels(input: Tensor, mask: Tensor | None, evaluation: bool = False) -> ModuleType:
    """As :func:`kernels`, for the operators themselves: what computes, never what calls an operator."""
    served = triton.operator_kernels(input)
    return _plain(input, mask, evaluation) if served is None else served


def primitives(input: Tensor) -> ModuleType:
    """What computes ``moments``, ``double_moments``, ``grad_sums`` and ``grad_input`` for the operators."""
    served = triton.operator_kernels(input)
    return eager if served is None else served


def running_mover(mean: Tensor, direct: bool) -> Callable[..., None]:
    """What moves running buffers by such a mean, by the signature of :func:`running.update_running`.

    With ``direct`` it is a layer that asks, and no operator.
    """
    served = triton.layer_kernels(mean) if direct else triton.operator_kernels(mean)
    mover: Callable[..., None] = (running if served is None else served).update_running
    return mover


def rank_kernels(input: Tensor) -> ModuleType:
    """What packs the moments of such an input for other ranks, and merges theirs, as :mod:`batchnorm.ops.ranks`."""
    # A compiler joins the plain operations with their neighbours.
    served = None if torch.compiler.is_compiling() else triton.layer_kernels(input)
    return ranks if served is None else served


def _plain(input: Tensor, mask: Tensor | None, evaluation: bool) -> ModuleType:
    return native if evaluation or native.serves(input, mask) else eager


def enter(compiled: ModuleType) -> None:
    """Let compiled kernels serve what is on the CPU, from here on."""
    global _compiled  # noqa: PLW0603  (asked at every call: a list around it would cost more than it explains)
    _compiled = compiled


def explain(input: Tensor, mask: Tensor | None = None) -> str:
    """Which backend serves this input in training, and why, in one line.

    In evaluation torch's own kernels serve every input that the compiled ones do not, masks included.

    Example:
        >>> explain(torch.randn(4, 3, device="meta"))
        "native: torch's own batch norm kernels serve input without a mask"
        >>> explain(torch.randn(4, 3, device="meta"), mask=torch.ones(4, dtype=torch.bool))
        'eager: a mask is given, and no other kernel takes statistics under one'
    """
    kernel = kernels(input, mask)
    if kernel is _compiled:
        return "cpu: the compiled kernels serve every input on the CPU"
    if kernel is triton.layer_kernels(input):
        return "triton: the Triton kernels serve every input on this GPU"
    if kernel is native:
        return "native: torch's own batch norm kernels serve input without a mask"
    if mask is not None:
        return "eager: a mask is given, and no other kernel takes statistics under one"
    return "eager: fewer than two values a channel, which torch's kernels refuse"


def backends() -> tuple[Backend, ...]:
    """What serves this machine, and why; the first that can take an input does.

    Example:
        >>> for backend in backends():
        ...     print(backend)
        cpu: ... (everything on the CPU; ...)
        triton: ... (everything on CUDA and ROCm GPUs; ...)
        native: yes (evaluation, and training without a mask; torch ... brings it)
        eager: yes (everything else; plain torch operations run on every device)
    """
    on_gpu, why = triton.availability()
    return (
        Backend("cpu", _compiled is not None, "everything on the CPU", cpu.reason),
        Backend("triton", on_gpu, "everything on CUDA and ROCm GPUs", why),
        Backend("native", True, "evaluation, and training without a mask", f"torch {torch.__version__} brings it"),
        Backend("eager", True, "everything else", "plain torch operations run on every device"),
    )
