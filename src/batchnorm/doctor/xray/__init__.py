"""The X-ray page: a model's norms in pictures, with the findings, in one HTML file."""

from .page import write

__all__ = ["write"]
