"""Batch normalization for PyTorch, done completely."""

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
    ConvBlock,
    FusingBatchNorm1d,
    FusingBatchNorm2d,
    FusingBatchNorm3d,
    LinearBlock,
    ResidualBlock,
    Standardize,
)
from .ops import backends
from .optim import parameter_groups
from .surgery import fold, fuse

__all__ = [
    "Activation",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "BatchNormAct1d",
    "BatchNormAct2d",
    "BatchNormAct3d",
    "ConvBlock",
    "FusingBatchNorm1d",
    "FusingBatchNorm2d",
    "FusingBatchNorm3d",
    "LinearBlock",
    "ResidualBlock",
    "Standardize",
    "__version__",
    "backends",
    "errors",
    "fold",
    "functional",
    "fuse",
    "lean",
    "nn",
    "ops",
    "parameter_groups",
]
