"""The operator contract: what every kernel computes, how autograd meets it, and which kernel serves whom."""

from .autograd import batch_norm, direct_kernels, normalize
from .dispatch import Backend, backends, explain

__all__ = ["Backend", "backends", "batch_norm", "direct_kernels", "explain", "normalize"]
