"""The launches of a pass, twice: as Triton finds them, and as they are known. Prints what differs, as JSON.

For a process of its own, in which Triton compiles and a stand-in for its driver takes the launches: no GPU is needed,
and nothing runs.
"""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from batchnorm import Activation
from batchnorm.ops.triton import compute

Launch = tuple[Any, ...]


class NoDevice:
    """A driver whose launches go into a list."""

    def __init__(self) -> None:
        self.launches: list[Launch] = []
        self.utils = SimpleNamespace(
            load_binary=lambda name, *rest: (name, name, 32, 0, 1024),
            get_device_properties=lambda device: {"max_shared_mem": 2**17, "multiprocessor_count": 132},
        )

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        def take(x: int, y: int, z: int, stream: int, function: Any, packed: Any, *rest: Any) -> None:
            arguments = rest[3:]  # metadata for profilers, and two hooks
            self.launches.append((metadata.hash, (x, y, z), [described(argument) for argument in arguments]))

        return take

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def described(argument: Any) -> Any:
    return f"{argument.dtype} {tuple(argument.shape)}" if isinstance(argument, Tensor) else str(argument)


def passes(shape: tuple[int, ...], activation: Activation, residual: bool, momentum: float, offset: int) -> None:
    """A training step of a layer, on inputs ``offset`` values from an aligned address."""
    values = torch.empty(torch.Size(shape).numel() + offset)[offset:].view(shape)
    channels = shape[1]
    weight, bias, mean, var = (torch.empty(channels) for _ in range(4))
    added = values if residual else None
    keep_bits = residual and activation.needs_bit
    buffers = (mean, var, torch.tensor(0), momentum, True)
    _, count, mean, var, bits = compute.train(values, weight, bias, added, None, *buffers, 1e-5, activation, keep_bits)
    kept = (None, None, bits) if keep_bits else (added, None, None)
    compute.backward(
        values, values, mean, var, weight, bias, *kept, count, 1e-5, activation, (True, True, True, residual)
    )


def main() -> None:
    device = NoDevice()
    driver.set_active(device)
    searches = []
    run = JITFunction.run

    def search(kernel: Any, *arguments: Any, **options: Any) -> Any:
        searches.append(kernel.fn.__name__)
        return run(kernel, *arguments, **options)

    JITFunction.run = search
    found = []
    for shape in ((8, 6, 4, 4), (64, 3, 40, 40), (4096, 48)):
        for activation, residual in (("relu", True), ("silu", True), ("identity", False)):
            for momentum, offset in ((0.1, 0), (0.2, 0), (0.1, 1)):
                device.launches.clear()
                searches.clear()
                passes(shape, Activation(activation), residual, momentum, offset)
                found.append(
                    {
                        "case": [shape, activation, momentum, offset],
                        "launches": list(device.launches),
                        "searches": list(searches),
                    }
                )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
