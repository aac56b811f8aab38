"""What the tests of ``lean`` share."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

import batchnorm
from batchnorm.memory.session import hooks_on_top, sessions
from batchnorm.ops import eager
from batchnorm.ops.observers import observers

CONV = nn.Conv2d(8, 8, 1)


def norm(**arguments: str | None) -> batchnorm.BatchNormAct2d:
    return batchnorm.BatchNormAct2d(8, **arguments)  # type: ignore[arg-type]


def watch(tensor: Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())


def is_alive(reference: StorageWeakRef) -> bool:
    return not reference.expired()


class Counting(ModuleType):
    """The plain kernels, which write down what they normalise."""

    CHECKS_TENSORS = False
    train, forward, backward = eager.train, eager.forward, eager.backward

    def __init__(self) -> None:
        super().__init__("counting")
        self.made: list[StorageWeakRef] = []
        self.autocast: list[tuple[bool, torch.dtype]] = []
        self.train, self.forward, self.backward = eager.train, eager.forward, eager.backward

    def normalize(self, *arguments: object) -> Tensor:
        assert not torch.is_grad_enabled()
        output = eager.normalize(*arguments)  # type: ignore[arg-type]
        self.made.append(watch(output))
        self.autocast.append((torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")))
        return output


class Model(nn.Module):
    """A norm before what may be checkpointed, one in it, and one after it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = (batchnorm.ConvBlock(4, 4, 1) for _ in range(3))
        self.around: Callable[..., Tensor] = lambda function, x: function(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.around(self.middle, self.first(x))).square().sum()  # type: ignore[no-any-return]


def gradients(model: nn.Module, x: Tensor, forward: Callable[[nn.Module, Tensor], Tensor]) -> list[Tensor]:
    """Those of a copy, and its buffers."""
    model = copy.deepcopy(model)
    forward(model, x).backward()
    return [*(p.grad for p in model.parameters() if p.grad is not None), *model.buffers()]


def assert_equal(a: list[Tensor], b: list[Tensor]) -> None:
    for one, other in zip(a, b, strict=True):
        torch.testing.assert_close(one, other)


def assert_over() -> None:
    assert not sessions
    assert not observers
    assert hooks_on_top() is None


def plain(model: nn.Module, x: Tensor) -> Tensor:
    return model(x)  # type: ignore[no-any-return]
