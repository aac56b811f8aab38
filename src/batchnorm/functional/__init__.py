"""The functions behind the layers."""

from .checks import Nonfinite, check_nonfinite
from .ghost import check_ghost_size, ghost_batch_norm
from .plain import batch_norm
from .renorm import batch_renorm
from .synced import sync_batch_norm

__all__ = [
    "Nonfinite",
    "batch_norm",
    "batch_renorm",
    "check_ghost_size",
    "check_nonfinite",
    "ghost_batch_norm",
    "sync_batch_norm",
]
