"""The layer itself, explained with one channel of a real batch in a trained network."""

from .measure import Explanation

__all__ = ["Explanation"]
