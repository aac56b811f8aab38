"""Design rule 3 in the compiled kernels: NaN and inf as in torch, never in the buffers, and none out of the padding."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch

from batchnorm import Activation
from batchnorm.ops import cpu
from ops import kernel_nonfinite as checks
from ops.cpu_sets import SETS, computing
from ops.kernel_cases import ACTIVATIONS
from ops.kernel_nonfinite import BAD

if not cpu.available:
    pytest.skip(cpu.reason, allow_module_level=True)

# Planes, planes as rows, rows with a short one, channels-last of whole and of broken registers.
SHAPES = (
    ((4, 5, 7, 7), "contiguous"),
    ((4, 5, 3, 3), "contiguous"),
    ((40, 5), "contiguous"),
    ((4, 5, 7, 7), "channels-last"),
    ((8, 16, 4, 4), "channels-last"),
)


@pytest.fixture(params=SETS, autouse=True)
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    with computing(request.param):
        yield request.param


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_as_in_torch(activation: Activation, training: bool) -> None:
    checks.check_as_in_torch(activation, training, SHAPES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_place_of_a_register_is_seen(dtype: torch.dtype) -> None:
    shapes = (((2, 3, 37), "contiguous"), ((5, 37), "contiguous"), ((3, 24, 3), "channels-last"))
    checks.check_every_place_is_seen(dtype, shapes)


@pytest.mark.parametrize("shape", [(4, 5, 7, 7), (64, 5), (3, 5, 4)], ids=str)
@pytest.mark.parametrize("bad", BAD, ids=str)
def test_the_buffers_keep_out_what_is_not_finite(bad: float, shape: tuple[int, ...]) -> None:
    checks.check_buffers_keep_out(bad, shape)


def test_a_variance_that_the_buffer_cannot_hold_is_kept_out() -> None:
    checks.check_variance_that_the_buffer_cannot_hold()


@pytest.mark.parametrize("shape", [(6, 3, 5, 7), (500, 8), (3, 3, 3)], ids=str)
def test_values_that_float_cannot_square_or_subtract(shape: tuple[int, ...]) -> None:
    checks.check_what_float_cannot_square(shape)


@pytest.mark.parametrize("mask", ["random", "runs", "sample", "one", "none"])
@pytest.mark.parametrize("format", ["contiguous", "channels-last"])
@pytest.mark.parametrize("shape", [(6, 3, 5, 7), (6, 8, 5, 7), (60, 8), (60, 3), (5, 24, 33)], ids=str)
def test_nothing_leaks_out_of_the_padding(shape: tuple[int, ...], format: str, mask: str) -> None:
    for activation, worst in itertools.product(ACTIVATIONS, (BAD, (1e30, -1e30, 1e30))):
        checks.check_nothing_leaks(shape, format, mask, activation, worst)
