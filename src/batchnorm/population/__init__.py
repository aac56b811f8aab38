"""Statistics of a network as a whole: estimated anew, frozen, merged over ranks, adapted to other data."""

from .accumulate import accumulate_statistics
from .adapt import adapt
from .freeze import freeze, unfreeze
from .passes import NonfiniteError
from .ranks import RankError
from .recalibrate import recalibrate
from .result import Moved, Recalibration
from .synchronize import synchronize

__all__ = [
    "Moved",
    "NonfiniteError",
    "RankError",
    "Recalibration",
    "accumulate_statistics",
    "adapt",
    "freeze",
    "recalibrate",
    "synchronize",
    "unfreeze",
]
