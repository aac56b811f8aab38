"""The functions behind the layers."""

from .checks import Nonfinite, check_nonfinite
from .plain import batch_norm

__all__ = ["Nonfinite", "batch_norm", "check_nonfinite"]
