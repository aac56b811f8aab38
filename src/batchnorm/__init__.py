"""Batch normalization for PyTorch, done completely."""

from ._version import __version__

__all__ = ["__version__"]
