"""The compiled kernels against the float64 reference: every operator, layout, dtype and activation, on what is odd.

Each instruction set that this machine runs is one parameter. What the operators give is compared number by number with
bounds that add up roundings (``kernel_truth.py``); what two of them compute alike must agree to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from batchnorm.ops import cpu
from ops.cpu_sets import SETS, computing
from ops.kernel_cases import descriptions, draw
from ops.kernel_checks import check

if not cpu.available:
    pytest.skip(cpu.reason, allow_module_level=True)

SPATIAL = [(), (1,), (2,), (15,), (16,), (17,), (31,), (33,), (64,), (129,), (1, 1), (3, 5), (4, 4), (7, 7), (1, 16)]
SPATIAL += [(2, 3, 2), (3, 1, 11), (32, 33), (4099,)]


@pytest.fixture(params=SETS)
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    with computing(request.param):
        yield request.param


@settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
@given(description=descriptions(SPATIAL))
def test_every_operator(instruction_set: str, description: tuple[Any, ...]) -> None:
    check(draw(*description))


@pytest.mark.slow
@settings(max_examples=1500, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
@given(description=descriptions(SPATIAL, most=150_000))
def test_every_operator_on_many_more(instruction_set: str, description: tuple[Any, ...]) -> None:
    check(draw(*description))
