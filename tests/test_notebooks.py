"""Every notebook runs from its first cell to its last, and was committed as it ran."""

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples").glob("*.ipynb"))

# What a notebook is there to show, in its own words.
SHOWS = {
    "recalibrate": [
        "averaged weights, recalibrated 0.",
        "one pass beside exact:",
        "as it was: True",
    ],
}


def printed(notebook: Any) -> str:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")


def test_every_notebook_is_run():
    assert {path.stem for path in NOTEBOOKS} == set(SHOWS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_what_it_is_for(path, tmp_path):
    committed = nbformat.read(path, as_version=4)
    notebook = nbformat.from_dict(committed)
    client = NotebookClient(notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": tmp_path}})
    ran = client.execute()
    for line in SHOWS[path.stem]:
        assert line in printed(ran), printed(ran)
        assert line in printed(committed), f"run it again: jupyter execute --inplace {path.name}"
    counts = [cell.execution_count for cell in committed.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1)), "committed as it ran, from first to last"
    errors = [output for cell in ran.cells for output in cell.get("outputs", []) if output.get("name") == "stderr"]
    assert errors == []
    assert list(tmp_path.iterdir()) == []
