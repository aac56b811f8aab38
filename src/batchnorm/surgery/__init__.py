"""Rewriting a model: what feeds what, and what may be changed without changing what it computes."""

from .fuse import fuse
from .result import Outcome, Surgery

__all__ = ["Outcome", "Surgery", "fuse"]
