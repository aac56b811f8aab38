"""Norms whose ``forward`` says what they normalise by, and not their flag."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Trained(nn.BatchNorm2d):
    @classmethod
    def trained(cls, channels: int) -> Any:
        """One whose tensors are not those of a new layer."""
        layer = cls(channels)
        with torch.no_grad():
            for tensor, least, most in ((layer.weight, 0.5, 1.5), (layer.bias, -1, 1), (layer.running_mean, -1, 1)):
                tensor.uniform_(least, most)
            layer.running_var.uniform_(0.2, 3)
        return layer


class FrozenByForward(_Trained):
    def forward(self, input: Tensor) -> Tensor:
        return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


class ScaleAndShift(_Trained):
    def forward(self, input: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return input * scale[:, None, None] + shift[:, None, None]


class FrozenAndActivated(FrozenByForward):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu()


class AlwaysByBatch(_Trained):
    def forward(self, input: Tensor) -> Tensor:
        var, mean = torch.var_mean(input, (0, 2, 3), correction=0, keepdim=True)
        return (input - mean) / (var + self.eps).sqrt() * self.weight[:, None, None] + self.bias[:, None, None]


class AsTorch(_Trained):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input)


class Activated(_Trained):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu()
