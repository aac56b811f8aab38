"""Rewriting a model: what feeds what, and what may be changed without changing what it computes."""

from .fold import fold
from .fuse import fuse
from .result import Outcome, Surgery

__all__ = ["Outcome", "Surgery", "fold", "fuse"]
