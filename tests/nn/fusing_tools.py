"""What the tests of ``FusingBatchNorm*`` share."""

from __future__ import annotations

import torch
from torch import Tensor

import batchnorm
from batchnorm.nn._norm_call import watch


def layers(**arguments) -> tuple[torch.nn.Module, torch.nn.Module]:
    torch.manual_seed(0)
    fusing, plain = batchnorm.FusingBatchNorm2d(4, **arguments), batchnorm.BatchNorm2d(4, **arguments)
    with torch.no_grad():
        for layer in (fusing, plain):
            if layer.weight is not None:
                layer.weight.copy_(torch.tensor([1.0, -0.5, 2.0, 0.3]))
                layer.bias.copy_(torch.tensor([0.1, 0.2, -0.3, 0.0]))
            if layer.running_mean is not None:
                layer.running_mean.copy_(torch.tensor([0.1, -0.1, 0.5, 0.0]))
    return fusing, plain


def data(seed: int = 1) -> Tensor:
    return torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(seed))


def agree(code, training: bool = True, computed=None, **arguments) -> None:
    """That code gives the same with both layers: outputs, gradients, buffers; and what it was computed with."""
    found = []
    for layer in layers(**arguments):
        layer.train(training)
        x, r = data().requires_grad_(), data(2).requires_grad_()
        with watch() as seen:
            y = code(layer, x * 1, r * 1)
        assert type(y) is Tensor
        y.mul(torch.randn(y.shape, generator=torch.Generator().manual_seed(3))).sum().backward()
        grads = [t.grad for t in (x, r, *layer.parameters())]
        found.append([y.detach(), *grads, *(b.clone() for b in layer.buffers())])
        if isinstance(layer, batchnorm.FusingBatchNorm2d) and computed is not None:
            assert [(residual, activation) for _, residual, activation in seen] == computed
    for ours, theirs in zip(*found, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
