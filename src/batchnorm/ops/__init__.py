"""The operator contract: what every kernel computes, how autograd meets it, and which kernel serves whom."""

from . import cpu
from .autograd import batch_norm, direct_kernels, normalize
from .dispatch import Backend, backends, enter, explain

if cpu.available:
    from .cpu import kernels

    enter(kernels)

__all__ = ["Backend", "backends", "batch_norm", "direct_kernels", "explain", "normalize"]
