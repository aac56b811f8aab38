"""Every picture of a study as a file."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from batchnorm.cli.app import app
from batchnorm.report import Curves, Series
from batchnorm.study import Conclusion, Outcome, Verdict, registered
from batchnorm.study.results.pictures import write_pictures


def test_each_chart_of_each_claim_becomes_a_file_with_a_telling_name(tmp_path: Path) -> None:
    charts = [
        Curves(title, "x", "y", [Series("a", [0, 1], [0, 1], 1)])
        for title in ("With batch norm: it's 5× as fast as without it, or so", "√σ")
    ]
    outcomes = [
        Outcome(registered()[name], [], Conclusion(Verdict.REPRODUCED, "", [], charts))
        for name in ("placement", "saturation")
    ]
    paths = write_pictures(outcomes, tmp_path, "svg")
    assert [path.name for path in paths] == [
        "placement-1-with-batch-norm-it-s-5.svg",
        "placement-2.svg",
        "saturation-1-with-batch-norm-it-s-5.svg",
        "saturation-2.svg",
    ]
    assert all(path.parent == tmp_path / "pictures" and path.read_bytes().startswith(b"<?xml") for path in paths)
    # Those of a study before are removed, and what else is there is left.
    stay = ["mine.svg", "placement.svg", "placement-9-Mine.svg", "other-1-chart.svg", "placement-1-a.pdf"]
    for name in ["placement-3-old.svg", "saturation-1-old-words.png", "eps-placement-2.svg", *stay]:
        (tmp_path / "pictures" / name).touch()
    assert write_pictures(outcomes, tmp_path, None) == []
    assert (tmp_path / "pictures" / "placement-3-old.svg").exists()
    assert write_pictures(outcomes, tmp_path, "svg") == paths
    left = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert left == {*stay, *(path.name for path in paths)}
    assert write_pictures(outcomes, tmp_path / "none", None) == []
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_the_command_writes_them_beside_the_page(tmp_path: Path) -> None:
    command = ["study", "error-surface", "--seeds", "1", "--workers", "1", "--out", str(tmp_path), "--export", "png"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    names = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert [name[:15] for name in names] == ["error-surface-1", "error-surface-2"]
    assert f"2 pictures: {tmp_path / 'pictures'}" in done.output
