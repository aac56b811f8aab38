"""The layers."""

from .batchnorm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from .blocks import ConvBlock, LinearBlock, ResidualBlock
from .fused import BatchNormAct1d, BatchNormAct2d, BatchNormAct3d
from .fusing import FusingBatchNorm1d, FusingBatchNorm2d, FusingBatchNorm3d
from .standardize import Standardize

__all__ = [
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
]
