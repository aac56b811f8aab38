"""The layers."""

from .batchnorm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from .blocks import ConvBlock, LinearBlock, ResidualBlock
from .domain import DomainBatchNorm1d, DomainBatchNorm2d, DomainBatchNorm3d, domain
from .frozen import FrozenBatchNorm1d, FrozenBatchNorm2d, FrozenBatchNorm3d
from .fused import BatchNormAct1d, BatchNormAct2d, BatchNormAct3d
from .fusing import FusingBatchNorm1d, FusingBatchNorm2d, FusingBatchNorm3d
from .ghost import GhostBatchNorm1d, GhostBatchNorm2d, GhostBatchNorm3d
from .renorm import BatchRenorm1d, BatchRenorm2d, BatchRenorm3d
from .standardize import Standardize
from .sync import SyncBatchNorm

__all__ = [
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
    "DomainBatchNorm1d",
    "DomainBatchNorm2d",
    "DomainBatchNorm3d",
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
    "domain",
]
