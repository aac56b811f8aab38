"""Batch normalization for PyTorch, done completely."""

from importlib import import_module
from typing import TYPE_CHECKING

from . import errors, functional, nn, ops
from ._version import __version__
from .activation import Activation
from .memory import lean
from .nn import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    BatchNormAct1d,
    BatchNormAct2d,
    BatchNormAct3d,
    BatchRenorm1d,
    BatchRenorm2d,
    BatchRenorm3d,
    ConvBlock,
    DomainBatchNorm1d,
    DomainBatchNorm2d,
    DomainBatchNorm3d,
    FrozenBatchNorm1d,
    FrozenBatchNorm2d,
    FrozenBatchNorm3d,
    FusingBatchNorm1d,
    FusingBatchNorm2d,
    FusingBatchNorm3d,
    GhostBatchNorm1d,
    GhostBatchNorm2d,
    GhostBatchNorm3d,
    LinearBlock,
    ResidualBlock,
    Standardize,
    SyncBatchNorm,
    domain,
)
from .ops import backends
from .optim import parameter_groups

if TYPE_CHECKING:
    from .doctor import Diagnosis, Finding, diagnose
    from .monitoring import monitor
    from .population import accumulate_statistics, adapt, freeze, recalibrate, synchronize, unfreeze
    from .surgery import convert, fold, fuse

__all__ = [
    "Activation",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "BatchNormAct1d",
    "BatchNormAct2d",
    "BatchNormAct3d",
    "BatchRenorm1d",
    "BatchRenorm2d",
    "BatchRenorm3d",
    "ConvBlock",
    "Diagnosis",
    "DomainBatchNorm1d",
    "DomainBatchNorm2d",
    "DomainBatchNorm3d",
    "Finding",
    "FrozenBatchNorm1d",
    "FrozenBatchNorm2d",
    "FrozenBatchNorm3d",
    "FusingBatchNorm1d",
    "FusingBatchNorm2d",
    "FusingBatchNorm3d",
    "GhostBatchNorm1d",
    "GhostBatchNorm2d",
    "GhostBatchNorm3d",
    "LinearBlock",
    "ResidualBlock",
    "Standardize",
    "SyncBatchNorm",
    "__version__",
    "accumulate_statistics",
    "adapt",
    "backends",
    "convert",
    "diagnose",
    "domain",
    "errors",
    "fold",
    "freeze",
    "functional",
    "fuse",
    "lean",
    "monitor",
    "nn",
    "ops",
    "parameter_groups",
    "recalibrate",
    "synchronize",
    "unfreeze",
]

# What works on whole models is imported when it is first used: `import batchnorm` stays quick.
_LATER: dict[str, tuple[str, ...]] = {
    "doctor": ("Diagnosis", "Finding", "diagnose"),
    "monitoring": ("monitor",),
    "population": ("accumulate_statistics", "adapt", "freeze", "recalibrate", "synchronize", "unfreeze"),
    "surgery": ("convert", "fold", "fuse"),
}
_ROOM_OF = {name: room for room, names in _LATER.items() for name in (room, *names)}


def __getattr__(name: str) -> object:
    room = _ROOM_OF.get(name)
    if room is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f".{room}", __name__)
    value: object = module if name == room else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_ROOM_OF})
