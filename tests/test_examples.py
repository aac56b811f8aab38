"""Every example runs as a user would run it, and prints what it promises."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"

# What an example is there to show, in its own words.
SHOWS = {
    "drop_in_and_fused": [f"{norms}: the same losses as torch to 0.001: True" for norms in ("drop-in", "fused")],
    "padded_sequences": [
        "the mask keeps padding out of the statistics: True",
        "padding comes out as 0: True",
        "longer padding changes nothing: True",
    ],
    "fuse_lean_fold": [
        "7 fused; largest relative difference on the example: ",
        "the optimizer still has the model's parameters: True",
        "lean keeps less than 0.7 of it: True",
        "7 folded; largest relative difference on the example: ",
        "norms left to serve: 0",
        "the same outputs: True",
    ],
    "standardize_tabular": [
        "standard deviations 1: True",
        "the same from one batch as from four: True",
        "inverse gives the table back: True",
    ],
    "checkpointing": [
        "torch.nn: checkpointing leaves the statistics as they would be: False",
        "batchnorm: checkpointing leaves the statistics as they would be: True",
        "batchnorm: the gradients are equal: True",
    ],
}


def test_every_example_is_run():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(SHOWS)


@pytest.mark.parametrize("name", SHOWS)
def test_an_example_runs_and_shows_what_it_is_for(name, tmp_path):
    """From another folder, without a warning, leaving nothing behind."""
    path = EXAMPLES / f"{name}.py"
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 60
    run = subprocess.run(
        [sys.executable, str(path)],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    for line in SHOWS[name]:
        assert line in run.stdout, run.stdout
    assert list(tmp_path.iterdir()) == []
