"""What the tests of ``convert`` share: layers of every kind, and when two models are the same."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import batchnorm

# By kind and dimensions; each with arguments of its own that are not the defaults.
BUILD: dict[str, Callable[..., nn.Module]] = {
    "torch": lambda d, *a, **k: getattr(nn, f"BatchNorm{d}d")(*a, **k),
    "torch-sync": lambda d, *a, **k: nn.SyncBatchNorm(*a, **k),
    "batch": lambda d, *a, **k: getattr(batchnorm, f"BatchNorm{d}d")(*a, **k),
    "fused": lambda d, *a, **k: (
        getattr(batchnorm, f"BatchNormAct{d}d") if "activation" in k else getattr(batchnorm, f"FusingBatchNorm{d}d")
    )(*a, **k),
    "sync": lambda d, *a, **k: batchnorm.SyncBatchNorm(*a, **k),
    "ghost": lambda d, *a, **k: getattr(batchnorm, f"GhostBatchNorm{d}d")(*a, ghost_size=3, **k),
    "renorm": lambda d, *a, **k: getattr(batchnorm, f"BatchRenorm{d}d")(*a, r_max=1.5, d_max=0.5, warmup=0, **k),
    "frozen": lambda d, *a, **k: getattr(batchnorm, f"FrozenBatchNorm{d}d")(*a, **k),
    "domain": lambda d, *a, **k: getattr(batchnorm, f"DomainBatchNorm{d}d")(*a, domains=("day", "night"), **k),
}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "ghost": {"ghost_size": 3},
    "renorm": {"r_max": 1.5, "d_max": 0.5, "warmup": 0},
    "domain": {"domains": ("day", "night")},
}
KINDS = tuple(BUILD)
WITH_ACTIVATION = ("fused", "sync", "ghost", "renorm", "frozen", "domain")
WITHOUT_STATISTICS = ("torch", "torch-sync", "batch", "fused", "sync", "ghost")


def images(dimensions: int = 2, dtype: torch.dtype = torch.float32, channels: int = 3, batch: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return (2 * torch.randn(batch, channels, *[2] * dimensions, generator=generator) + 1).to(dtype)


def fill(model: nn.Module, seed: int = 0) -> nn.Module:
    """Parameters and statistics at which a mistake shows: fresh ones are 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + ("var" in name))
            else:
                tensor.fill_(int(torch.randint(3, 9, (), generator=generator)))
    return model


def assert_same(one: nn.Module, other: nn.Module) -> None:
    """The same classes, tensors and attributes, but for what converted layers remember."""
    assert repr(one) == repr(other)
    pairs = list(zip(one.named_modules(), other.named_modules(), strict=True))
    for (path, mine), (their_path, theirs) in pairs:
        assert path == their_path
        assert mine is not theirs
        assert type(mine) is type(theirs), path
        remembered = {"_converted"}
        assert vars(mine).keys() - remembered == vars(theirs).keys() - remembered, path
        for name, value in vars(mine).items():
            if name in ("_parameters", "_buffers"):
                tensors = vars(theirs)[name]
                assert list(value) == list(tensors), path
                assert all(value[key] is tensors[key] for key in value), path
            elif name == "_modules":
                assert list(value) == list(vars(theirs)[name]), path
            elif name not in remembered and name != "again":  # layers
                assert value == vars(theirs)[name], (path, name)
    assert list(one.state_dict()) == list(other.state_dict())


def run(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, gradients and buffers of two passes of a copy."""
    model, x = copy.deepcopy(model), x.clone().requires_grad_()
    y = model(x) if isinstance(model(x), Tensor) else model(x)[0]
    y.sin().sum().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return [y.detach(), x.grad, *gradients, *model.buffers()]  # type: ignore[list-item]


def assert_computes_the_same(one: nn.Module, other: nn.Module, x: Tensor) -> None:
    for mine, theirs in zip(run(one, x), run(other, x), strict=True):
        assert torch.equal(mine, theirs)
