"""One launch of one kernel.

Triton looks at every argument of every launch to find what it has compiled for them. The launches of one plan differ in
nothing that it looks at but dtypes and alignments of tensors, so what it found is kept, and called past that search.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

__all__ = ["ACCUMULATE", "ELEMENTS", "Known", "launch"]

#: The dtypes of inputs.
ELEMENTS = frozenset((torch.float32, torch.float64, torch.bfloat16, torch.float16))

#: The dtype that values are computed in, by that of the statistics.
ACCUMULATE = {torch.float32: tl.float32, torch.float64: tl.float64}

#: What Triton compiled, and the constants in the order of the kernel's arguments, by all that it depends on.
Known = dict[tuple[Any, ...], tuple[Any, tuple[Any, ...]]]

_ALIGNED = 16  # bytes: an address that is a multiple is compiled for
# On ROCm what is compiled depends on the size of the memory behind a tensor too.
_is_direct = torch.version.hip is None


def launch(
    kernel: Any,
    programs: int,
    on: Tensor,
    tensors: Sequence[Tensor | None],
    numbers: Sequence[float],
    warps: int,
    constants: dict[str, Any],
    common: dict[str, Any] | None = None,
    known: Known | None = None,
) -> None:
    """Have ``programs`` of them computed on the device of ``on``, in its current stream.

    Args:
        kernel: Takes ``tensors``, ``numbers``, and ``constants`` and ``common`` in an order of its own.
        programs: How many.
        on: A tensor on the device.
        tensors: Memory, or None.
        numbers: Passed at each launch.
        warps: Of a program.
        constants: Compiled in, by name.
        common: As ``constants``, where they are the same for all launches of the kernel that ``known`` has.
        known: Of launches whose ``numbers`` and ``warps`` are the same for each kernel, but for floats.
    """
    index = on.get_device()
    if index >= 0 and index != torch.cuda.current_device():
        with torch.cuda.device(index):
            return launch(kernel, programs, on, tensors, numbers, warps, constants, common, known)
    key: tuple[Any, ...] = ()
    if known is not None and _is_direct:
        kinds = [None if tensor is None else (tensor.dtype, tensor.data_ptr() % _ALIGNED == 0) for tensor in tensors]
        # By its identity, which is the module's: Triton takes longer for a kernel's hash than a launch may take.
        key = (id(kernel), index, *constants.values(), *kinds)
        found = known.get(key)
        if found is not None:
            compiled, in_order = found
            compiled[(programs, 1, 1)](*tensors, *numbers, *in_order)
            return None
    constants = constants if common is None else {**common, **constants}
    compiled = kernel[(programs,)](*tensors, *numbers, num_warps=warps, **constants)
    if known is not None and _is_direct and compiled is not None:  # the interpreter compiles nothing
        names = kernel.arg_names[len(tensors) + len(numbers) :]
        known[key] = compiled, tuple(constants[name] for name in names)
    return None
