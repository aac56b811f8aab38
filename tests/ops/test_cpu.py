"""The compiled kernels against the float64 reference: every operator, layout, dtype and activation, on what is odd.

Each instruction set that this machine runs is one parameter. What the operators give is compared number by number with
bounds that add up roundings (``cpu_truth.py``); what two of them compute alike must agree to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchnorm.ops import cpu
from ops.cpu_cases import ACTIVATIONS, FORMATS_AND_EXPANDED, MASKS, SETS, computing, draw
from ops.cpu_checks import check

if not cpu.available:
    pytest.skip(cpu.reason, allow_module_level=True)

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SPATIAL = [(), (1,), (2,), (15,), (16,), (17,), (31,), (33,), (64,), (129,), (1, 1), (3, 5), (4, 4), (7, 7), (1, 16)]
SPATIAL += [(2, 3, 2), (3, 1, 11), (32, 33), (4099,)]


@pytest.fixture(params=SETS)
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    with computing(request.param):
        yield request.param


@st.composite
def descriptions(draw_from: st.DrawFn, most: int = 20_000) -> tuple[Any, ...]:
    """What ``draw`` takes: short enough to read where an example fails."""
    channels = draw_from(st.integers(1, 70))
    spatial = draw_from(st.sampled_from(SPATIAL))
    samples = draw_from(st.integers(1, max(1, min(70, most // (channels * math.prod(spatial))))))
    formats = st.sampled_from(list(FORMATS_AND_EXPANDED))
    return (
        (samples, channels, *spatial),
        draw_from(st.sampled_from(DTYPES)),
        draw_from(formats),
        draw_from(formats),
        draw_from(st.none() | formats),
        draw_from(st.sampled_from(["both", "weight", "bias", "none", "strided"])),
        draw_from(st.none() | st.sampled_from(MASKS)),
        draw_from(st.sampled_from(ACTIVATIONS)),
        draw_from(st.integers(0, 2**20)),
    )


@settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
@given(description=descriptions())
def test_every_operator(instruction_set: str, description: tuple[Any, ...]) -> None:
    check(draw(*description))


@pytest.mark.slow
@settings(max_examples=1500, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
@given(description=descriptions(most=150_000))
def test_every_operator_on_many_more(instruction_set: str, description: tuple[Any, ...]) -> None:
    check(draw(*description))
