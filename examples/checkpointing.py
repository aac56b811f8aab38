"""Activation checkpointing runs the forward pass twice. The running statistics must see each batch once."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import batchnorm

torch.manual_seed(0)
x = 3 + torch.randn(16, 8, 10, 10)


def train_step(norm: nn.Module, *, checkpointed: bool) -> nn.Module:
    norm = copy.deepcopy(norm)
    block = nn.Sequential(norm, nn.ReLU())
    output = checkpoint(block, x, use_reentrant=False) if checkpointed else block(x)
    output.square().mean().backward()
    return norm


print(f"{'':<24}{'batches counted':>16}{'running mean of channel 0':>28}")
for name, norm in (("torch.nn", nn.BatchNorm2d(8)), ("batchnorm", batchnorm.BatchNorm2d(8))):
    plain, checkpointed = (train_step(norm, checkpointed=flag) for flag in (False, True))
    for what, layer in (("plain", plain), ("checkpointed", checkpointed)):
        counted, mean = int(layer.num_batches_tracked), layer.running_mean[0].item()
        print(f"{name + ', ' + what:<24}{counted:>16}{mean:>28.4f}")
    same = torch.equal(plain.running_mean, checkpointed.running_mean)
    print(f"{name}: checkpointing leaves the statistics as they would be:", same)
    print(f"{name}: the gradients are equal:", torch.equal(plain.weight.grad, checkpointed.weight.grad))
