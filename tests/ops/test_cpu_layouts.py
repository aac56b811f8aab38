"""Every way in which the compiled kernels divide work: right numbers, and the same bits for any number of threads.

``WAYS`` has an input on each side of every decision in ``layout.cpp`` and ``passes.cpp``: planes by channel or by
slice, matrices of few and of many slices, with and without a short last row, folded or not, masks as runs of values and
of rows. In most the work is divided among threads (from 32768 values on).
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from batchnorm import Activation
from batchnorm.ops import cpu
from ops.cpu_sets import SETS, computing, threads
from ops.kernel_cases import ACTIVATIONS, OPS, Case, draw
from ops.kernel_checks import check

if not cpu.available:
    pytest.skip(cpu.reason, allow_module_level=True)

# Shape, format, mask.
WAYS: dict[str, tuple[tuple[int, ...], str, str | None]] = {
    "planes, a channel a task": ((2, 16, 33, 64), "contiguous", None),
    "planes in slices": ((3, 1, 220, 221), "contiguous", None),
    "planes in slices, three channels": ((1, 3, 257, 270), "contiguous", None),
    "planes in slices that begin with a byte": ((70, 1, 33, 31), "contiguous", None),
    "planes in one slice": ((1, 2, 130, 131), "contiguous", None),
    "planes in more than 64 runs a block": ((70, 31, 5, 5), "contiguous", None),
    "planes too wide to fold": ((7, 321, 3, 5), "contiguous", None),
    "planes, a value too few for threads": ((1, 1, 151, 217), "contiguous", None),
    "planes, just enough for threads": ((1, 1, 128, 256), "contiguous", None),
    "rows in slices": ((1500, 64), "contiguous", None),
    "rows of few columns": ((70_001, 1), "contiguous", None),
    "rows, wide and few": ((40, 1031), "contiguous", None),
    "rows, a short one behind them": ((2051, 37), "contiguous", None),
    "a short row and nothing else": ((9, 4099), "contiguous", None),
    "planes as rows": ((150, 37, 3, 5), "contiguous", None),
    "planes as whole rows": ((600, 16, 2, 4), "contiguous", None),
    "channels-last, three channels": ((2, 3, 130, 131), "channels-last", None),
    "channels-last": ((3, 64, 20, 31), "channels-last", None),
    "channels-last, 70 channels": ((2, 70, 20, 20), "channels-last", None),
    "masked planes in slices": ((3, 1, 230, 231), "contiguous", "random"),
    "masked planes, a channel a task": ((5, 9, 40, 41), "contiguous", "runs"),
    "masked rows": ((3000, 24), "contiguous", "random"),
    "masked rows that are no bytes": ((3000, 23), "contiguous", "random"),
    "masked channels-last": ((4, 24, 40, 41), "channels-last", "runs"),
    "masked channels-last that is no bytes": ((4, 23, 40, 41), "channels-last", "runs"),
    "masked channels-last, few left": ((1, 8, 80, 81), "channels-last", "one"),
    "masked, nothing left": ((1, 8, 80, 81), "channels-last", "none"),
}

RELU, SILU = ACTIVATIONS[1], ACTIVATIONS[6]


@pytest.fixture(params=SETS)
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    with computing(request.param):
        yield request.param


def case_of(way: str, dtype: torch.dtype = torch.float32, **arguments: Any) -> Case:
    shape, format, mask = WAYS[way]
    return draw(shape, dtype, format, mask=mask, residual=format, **arguments)


@pytest.mark.parametrize("way", list(WAYS))
def test_two_threads_are_right(way: str, instruction_set: str) -> None:
    with threads(2):
        check(case_of(way, activation=RELU))


@pytest.mark.slow
@pytest.mark.parametrize("activation", [*ACTIVATIONS[2:4], SILU], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("way", list(WAYS))
def test_two_threads_are_right_in_each_dtype(
    way: str, dtype: torch.dtype, activation: Any, instruction_set: str
) -> None:
    with threads(2):
        check(case_of(way, dtype, activation=activation))


def results(case: Case) -> list[Tensor]:
    """All that a step of training and one of evaluation give, the buffers among them."""
    channels = case.input.shape[1]
    buffers = torch.zeros(channels), torch.ones(channels), torch.tensor(0)
    tensors = (case.input, case.weight, case.bias, case.residual, case.mask)
    output, count, mean, var, bits = OPS.train(*tensors, *buffers, 0.3, True, *case.described, True)
    found = [output, count, mean, var, bits, *buffers]
    kept = bits if case.activation.needs_bit else None
    for statistics_count in (count, None):
        layer = (case.grad_output, *case.layer(mean, var), kept)
        found += OPS.backward(*layer, statistics_count, *case.described, [True] * 4)
    found += OPS.grad_sums(case.grad_output, *case.layer(mean, var), kept, *case.described)
    return [*found, OPS.normalize(*case.layer(mean, var), *case.described)]


# In float64 the last bit of every sum shows.
@pytest.mark.parametrize(
    ("dtype", "activation"), [(torch.float64, RELU), (torch.float32, SILU)], ids=["float64-relu", "float32-silu"]
)
@pytest.mark.parametrize("way", list(WAYS))
def test_the_same_bits_for_any_number_of_threads(
    way: str, dtype: torch.dtype, activation: Activation, instruction_set: str
) -> None:
    """Design rule 4; and from run to run."""
    case = case_of(way, dtype, activation=activation)
    with threads(1):
        wanted = results(case)
    for count in (1, 2, 3, 4):
        with threads(count):
            for place, (one, other) in enumerate(zip(results(case), wanted, strict=True)):
                assert torch.equal(one, other), f"{count} threads: result {place} differs"


def digest() -> str:
    """All bits of all ways in one line."""
    collected = hashlib.sha256()
    for way in WAYS:
        for tensor in results(case_of(way, torch.float64, activation=RELU)):
            collected.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return collected.hexdigest()


def test_the_same_bits_in_processes_of_other_thread_counts() -> None:
    found = set()
    for count in ("1", "2"):
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": count,
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        }
        code = "from ops.test_cpu_layouts import digest; print(digest())"
        result = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr
        found.add(result.stdout)
    assert len(found) == 1
