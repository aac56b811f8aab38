"""Every notebook runs from its first cell to its last, and was committed as it ran."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples").glob("*.ipynb"))

# What a notebook is there to show, in its own words.
SHOWS = {
    "recalibrate": [
        "averaged weights, recalibrated 0.",
        "one pass beside exact:",
        "as it was: True",
        "one-pass, 1 pass",
    ],
}


def code_cells(path):
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def test_every_notebook_is_run():
    assert {path.stem for path in NOTEBOOKS} == set(SHOWS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_what_it_is_for(path, tmp_path):
    """Its code as one program: no cell needs more than Python."""
    run = subprocess.run(
        [sys.executable, "-c", "\n".join("".join(cell["source"]) for cell in code_cells(path))],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", "MPLCONFIGDIR": str(tmp_path / "matplotlib")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    for line in SHOWS[path.stem]:
        assert line in run.stdout, run.stdout
    assert [each.name for each in tmp_path.iterdir()] in ([], ["matplotlib"])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_was_committed_as_it_ran(path):
    cells = code_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1)), "from first to last"
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    printed = "".join("".join(output["text"]) for output in outputs if output.get("name") == "stdout")
    for line in SHOWS[path.stem]:
        assert line in printed, f"run it again: jupyter execute --inplace {path.name}"
