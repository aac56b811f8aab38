"""The Triton kernels touch no byte outside the tensors they are given: in Triton's interpreter, which reads by address.

As in ``test_cpu_memory.py``, every tensor lies against a page that nobody may touch, those that the kernels' host side
allocates too.
"""

from __future__ import annotations

import itertools
import sys
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

pytest.importorskip("triton", reason="Triton is not installed")

from batchnorm.ops.triton import kernels
from ops.guarded_memory import guarded, in_a_process_of_its_own
from ops.kernel_cases import ACTIVATIONS, Case, draw
from ops.triton_interpreter import is_interpreted
from ops.triton_serving import serving, split

if not is_interpreted:
    pytest.skip("Triton compiles here: compute-sanitizer looks for this on a GPU", allow_module_level=True)
if not sys.platform.startswith("linux"):
    pytest.skip("pages are guarded by Linux's means here", allow_module_level=True)

# Around tiles, blocks of channels and bytes of bits.
SHAPES = [(3, 7), (129, 9), (33, 65), (3, 5, 15), (2, 1, 150), (2, 9, 5, 5), (1, 9, 1, 1)]
KINDS = tuple(itertools.product((torch.float32, torch.bfloat16, torch.float64), (1, 6), (None, "random")))


class Guarding(TorchFunctionMode):
    """Whatever is allocated lies so too."""

    def __init__(self, at_end: bool) -> None:
        super().__init__()
        self.at_end = at_end

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        allocated = func in (torch.empty, torch.empty_like, Tensor.new_empty) and found.is_cpu
        return guarded(found, self.at_end) if allocated else found


def run(every: bool) -> None:
    """The cases of one process."""
    torch.set_num_threads(1)
    ways = itertools.product(SHAPES, ("contiguous", "channels-last"), (False, True), (True, False))
    with serving():
        for place, (shape, format, cut, at_end) in enumerate(ways):
            if cut and not every and not (at_end and (place // 4 + place // 8) % 2):  # which takes longer
                continue
            # One after the other, which between them meet every shape.
            kinds = KINDS if every else KINDS[place % len(KINDS) :][:1]
            for dtype, activation, mask in kinds:
                print(shape, format, dtype, ACTIVATIONS[activation], mask, at_end, cut, flush=True)
                case = draw(shape, dtype, format, residual=format, mask=mask, activation=ACTIVATIONS[activation])
                with split() if cut else nullcontext(), Guarding(at_end):
                    _exercise(case, lambda tensor, at_end=at_end: guarded(tensor, at_end))


def _exercise(case: Case, guard: Any) -> None:
    for name in ("input", "grad_output", "residual", "weight", "bias", "mask"):
        tensor = getattr(case, name)
        setattr(case, name, None if tensor is None else guard(tensor))
    channels = case.input.shape[1]
    layer = (case.weight, case.bias, case.residual, case.mask)
    settings = (case.eps, case.activation)
    buffers = (guard(torch.zeros(channels)), guard(torch.ones(channels)), guard(torch.zeros((), dtype=torch.int64)))
    needs_bit = case.activation.needs_bit
    train = (case.weight, case.bias, case.residual, case.mask, *buffers, 0.1, True, *settings, needs_bit)
    if case.mask is None and case.input.numel() == channels:
        found = kernels.forward(case.input, *layer, *settings, needs_bit)
    else:
        found = kernels.train(case.input, *train)
    _, count, mean, var, bits = found
    kernels.normalize(case.input, mean, var, *layer, *settings)
    kernels.backward(case.grad_output, case.input, mean, var, *layer, bits if needs_bit else None, count, *settings)
    kernels.backward(case.grad_output, case.input, mean, var, *layer, None, None, *settings)


def test_nothing_outside_is_touched() -> None:
    tried = in_a_process_of_its_own("from ops.test_triton_memory import run; run(False)")
    assert len(tried) == len(SHAPES) * 5


@pytest.mark.slow
def test_nothing_outside_is_touched_by_any() -> None:
    tried = in_a_process_of_its_own("from ops.test_triton_memory import run; run(True)")
    assert len(tried) == len(SHAPES) * 2 * 2 * 2 * len(KINDS)
