"""Every layer in a small size, as functions of images: for what has to hold of all of them, on any device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import batchnorm
import batchnorm.functional.synced
from batchnorm.ops import schema

CHANNELS = 4
SHAPE = (6, CHANNELS, 3, 5)


class Waiting(torch.nn.Module):
    """A norm that waits for the sum and the activation after it."""

    def __init__(self, momentum: float | None, **others: Any) -> None:
        super().__init__()
        self.norm = batchnorm.FusingBatchNorm2d(CHANNELS, momentum=momentum, **others)

    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        output = self.norm(input) if mask is None else self.norm(input, mask)
        return torch.relu(output + input)


@dataclass(frozen=True)
class Layer:
    """A layer, by the name of its class; ``takes`` what else than the input."""

    build: Callable[..., torch.nn.Module]
    takes: tuple[str, ...] = ("mask",)


def _norm(name: str, *takes: str, **arguments: Any) -> Layer:
    cls = getattr(batchnorm, name)
    return Layer(lambda **others: cls(CHANNELS, **arguments, **others), ("mask", *takes))


LAYERS = {
    "BatchNorm2d": _norm("BatchNorm2d"),
    "BatchNormAct2d relu": _norm("BatchNormAct2d", "residual", activation="relu"),
    "BatchNormAct2d silu": _norm("BatchNormAct2d", "residual", activation="silu"),
    "SyncBatchNorm relu": _norm("SyncBatchNorm", "residual", activation="relu"),
    "SyncBatchNorm gelu": _norm("SyncBatchNorm", "residual", activation="gelu"),
    "GhostBatchNorm2d": _norm("GhostBatchNorm2d", "residual", ghost_size=2, activation="leaky_relu"),
    "BatchRenorm2d": _norm("BatchRenorm2d", "residual", warmup=(0, 4, 2), activation="hardswish"),
    "FrozenBatchNorm2d": _norm("FrozenBatchNorm2d", "residual", activation="relu"),
    "DomainBatchNorm2d": _norm("DomainBatchNorm2d", "residual", activation="tanh"),
    "FusingBatchNorm2d": Layer(Waiting),
    "ConvBlock": Layer(lambda **others: batchnorm.ConvBlock(CHANNELS, CHANNELS, 3, **others), ()),
    "ResidualBlock": Layer(lambda **others: batchnorm.ResidualBlock(CHANNELS, **others), ()),
}


# Layer, whether there is a mask, momentum.
CASES = [
    (name, masked, momentum)
    for name, layer in LAYERS.items()
    for masked in (False, True)[: 1 + ("mask" in layer.takes)]
    for momentum in (0.1, None)
]
IDS = [f"{name}{' mask' * masked} {momentum}" for name, masked, momentum in CASES]


def tensors(layer: Layer, masked: bool, device: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """What a layer is called with."""
    found = {"input": torch.randn(SHAPE).to(device, dtype)}
    if "residual" in layer.takes:
        found["residual"] = torch.randn(SHAPE).to(device, dtype)
    if masked and "mask" in layer.takes:
        found["mask"] = (torch.rand(SHAPE[0], *SHAPE[2:]) < 0.7).to(device)
    return found


def run(layer: torch.nn.Module, given: dict[str, Tensor], backward: bool = True) -> dict[str, Tensor]:
    """Output, gradients and buffers."""
    given = {name: each.clone().requires_grad_(each.is_floating_point() and backward) for name, each in given.items()}
    output = layer(**given)
    found = {"output": output}
    if backward:
        output.pow(3).sum().backward()
        found |= {f"gradient of {name}": each.grad for name, each in given.items() if each.grad is not None}
        found |= {f"gradient of {name}": each.grad for name, each in layer.named_parameters() if each.grad is not None}
    return {name: each.detach() for name, each in {**found, **dict(layer.named_buffers())}.items()}


@contextmanager
def world_of_one(backend: str, device: torch.device | None = None) -> Iterator[dist.ProcessGroup]:
    """A process group of this process alone, over which ``SyncBatchNorm`` synchronises all the same."""
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, device_id=device)
    try:
        group = dist.group.WORLD
        assert group is not None
        road = (group.group_name, 1)
        with patch.object(batchnorm.functional.synced, "ranks_to_synchronize", lambda process_group: road):
            yield group
    finally:
        dist.destroy_process_group()


_OPERATORS = {
    signature[: signature.index("(")].partition(".")[0]: implementation
    for signature, implementation in zip(schema.SCHEMAS, schema._IMPLEMENTATIONS[0], strict=True)
}
_READS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class Operators(TorchDispatchMode):
    """Notes in ``seen`` operators that read values, or have tensors of two devices; looks into the library's own."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "batchnorm":
            with self:
                return _OPERATORS[func._schema.name.partition("::")[2]](*args)
        found = func(*args, **(kwargs or {}))
        every = [each for each in tree_leaves((args, kwargs, found)) if isinstance(each, Tensor)]
        devices = {each.device.type for each in every} if func is not torch.ops.aten.empty_like.default else set()
        # An index of numbers has a shape that is known.
        by_values = _READS & set(func.tags) and (
            func.overloadpacket is not torch.ops.aten.index
            or any(each.dtype is torch.bool for each in tree_leaves(args[1:]) if isinstance(each, Tensor))
        )
        if by_values or len(devices) > 1:
            self.seen.append(f"{func} on {', '.join(sorted(devices))}")
        return found
