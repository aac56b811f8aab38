"""The operator contract: what every kernel computes, how autograd meets it, and which kernel serves whom."""

from .autograd import batch_norm, normalize, update_running
from .dispatch import Backend, backends, explain

__all__ = ["Backend", "backends", "batch_norm", "explain", "normalize", "update_running"]
