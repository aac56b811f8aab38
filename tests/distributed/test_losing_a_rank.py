"""A rank that is gone ends in an error within the group's timeout, never in a number without its samples."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("losing.py")


@pytest.mark.parametrize(
    "way",
    [
        "dies",
        pytest.param("stops", marks=pytest.mark.slow),
        pytest.param("dies-before-backward", marks=pytest.mark.slow),
    ],
)
def test_losing_a_rank_is_an_error_within_the_timeout(way: str, tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen([sys.executable, str(SCRIPT), str(rank), str(tmp_path), way], env=environment)
        for rank in range(2)
    ]
    try:
        assert ranks[0].wait(60) == 0
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    found = (tmp_path / "found.txt").read_text()
    # Before the backward pass the statistics are those of both ranks, and have moved.
    assert found.startswith("moved: an error" if way == "dies-before-backward" else "unmoved: an error"), found
