"""Batch normalization for PyTorch, done completely."""

from . import errors, functional, nn, ops
from ._version import __version__
from .activation import Activation
from .nn import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    BatchNormAct1d,
    BatchNormAct2d,
    BatchNormAct3d,
    ConvBlock,
    LinearBlock,
    ResidualBlock,
    Standardize,
)
from .ops import backends
from .optim import parameter_groups

__all__ = [
    "Activation",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "BatchNormAct1d",
    "BatchNormAct2d",
    "BatchNormAct3d",
    "ConvBlock",
    "LinearBlock",
    "ResidualBlock",
    "Standardize",
    "__version__",
    "backends",
    "errors",
    "functional",
    "nn",
    "ops",
    "parameter_groups",
]
