"""Launches that are known already are made as Triton would make them, and Triton is not asked again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

PASSES = Path(__file__).with_name("repeated_launches.py")


@pytest.fixture(scope="module")
def passes() -> list[dict[str, Any]]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(PASSES)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_the_second_time_nothing_is_searched_and_the_launches_are_the_same(passes: list[dict[str, Any]]) -> None:
    pairs = [(passes[number], passes[number + 1]) for number in range(0, len(passes), 3)]
    assert len(pairs) == 9
    for first, second in pairs:
        assert second["searches"] == [], second["case"]
        differ = []
        for one, other in zip(first["launches"], second["launches"], strict=True):
            assert one[:2] == other[:2], second["case"]  # the binary, and how many programs
            differ += [(a, b) for a, b in zip(one[2], other[2], strict=True) if a != b]
        # The momentum, in two parts, once where the buffers move.
        assert [round(float(b) / float(a), 3) for a, b in differ] == [2.0, 2.0], second["case"]


def test_tensors_at_other_addresses_are_searched_for_and_get_other_binaries(passes: list[dict[str, Any]]) -> None:
    for number in range(2, len(passes), 3):
        aligned, shifted = passes[number - 1], passes[number]
        assert shifted["searches"], shifted["case"]
        binaries = [{launch[0] for launch in passed["launches"]} for passed in (aligned, shifted)]
        assert binaries[0] != binaries[1], shifted["case"]
