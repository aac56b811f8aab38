"""Rewriting a model: what feeds what, and what may be changed without changing what it computes."""

from .convert import convert
from .fold import fold
from .fuse import fuse
from .result import Outcome, Surgery

__all__ = ["Outcome", "Surgery", "convert", "fold", "fuse"]
