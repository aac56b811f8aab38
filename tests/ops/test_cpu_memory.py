"""The compiled kernels touch no byte outside the tensors they are given.

Every tensor lies in memory of its own, with its end against a page that nobody may touch, or its beginning: a value
read or written beyond it ends the process. So all of it runs in another one, which says before each case what it tries.
"""

from __future__ import annotations

import itertools
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from batchnorm.ops import cpu
from ops.cpu_sets import SETS, computing
from ops.guarded_memory import guarded, in_a_process_of_its_own
from ops.kernel_cases import ACTIVATIONS, OPS, Case, draw

if not cpu.available:
    pytest.skip(cpu.reason, allow_module_level=True)
if not sys.platform.startswith("linux"):
    pytest.skip("pages are guarded by Linux's means here", allow_module_level=True)

# Around whole registers, tiles and bytes of bits; folded and not; more than one block.
SHAPES = [
    (2, 1),
    (3, 7),
    (2, 37),
    (5, 16),
    (33, 65),
    (17, 129),
    (1, 3, 2),
    (3, 5, 15),
    (2, 3, 16),
    (2, 3, 17),
    (1, 2, 4097),
    (3, 24, 3, 3),
    (2, 70, 5, 5),
    (7, 8, 1, 9),
    (1, 9, 1, 1),
]


def run() -> None:
    """All cases of one process."""
    torch.set_num_threads(1)
    dtypes = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    ways = itertools.product(
        SETS, SHAPES, ("contiguous", "channels-last"), dtypes, (1, 6), (None, "random"), (True, False)
    )
    for instruction_set, shape, format, dtype, activation, mask, at_end in ways:
        print(instruction_set, shape, format, dtype, ACTIVATIONS[activation], mask, at_end, flush=True)
        case = draw(shape, dtype, format, residual=format, mask=mask, activation=ACTIVATIONS[activation])
        with computing(instruction_set):
            _exercise(case, at_end)


def _exercise(case: Case, at_end: bool) -> None:
    from batchnorm.ops.cpu import kernels

    def guard(tensor: Any) -> Any:
        return guarded(tensor, at_end) if isinstance(tensor, Tensor) else tensor

    for name in ("input", "grad_output", "residual", "weight", "bias", "mask"):
        setattr(case, name, guard(getattr(case, name)))
    # What is written by the direct functions is allocated by these.
    kernels._empty = lambda *sizes, **settings: guard(torch.empty(*sizes, **settings))
    kernels._empty_like = lambda like: guard(torch.empty_like(like))
    channels = case.input.shape[1]
    settings = (case.eps, case.activation)
    layer = (case.weight, case.bias, case.residual, case.mask)
    mean, var = guard(torch.rand(channels)), guard(torch.rand(channels))
    bits = None
    if case.mask is not None or case.input.numel() > channels:
        buffers = (guard(torch.zeros(channels)), guard(torch.ones(channels)), guard(torch.zeros(1, dtype=torch.int64)))
        found = kernels.train(case.input, *layer, *buffers, 0.1, True, *settings, case.activation.needs_bit)
        bits = guard(found[4]) if case.activation.needs_bit else None
    kernels.normalize(case.input, mean, var, *layer, *settings)
    OPS.moments(case.input, case.mask)
    for kept, count in itertools.product((None, bits), (None, torch.tensor(7))):
        kernels.backward(case.grad_output, case.input, mean, var, *layer, kept, count, *settings)
        OPS.grad_sums(case.grad_output, case.input, mean, var, *layer, kept, *case.described)


def test_nothing_outside_is_touched() -> None:
    tried = in_a_process_of_its_own("from ops.test_cpu_memory import run; run()")
    assert len(tried) == len(SETS) * len(SHAPES) * 2 * 4 * 2 * 2 * 2
