import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from batchnorm import __version__
from batchnorm.cli import main, tools
from batchnorm.study import Source, SubjectClaim, registered

# The networks that tests have as their own lie among the tests.
ENVIRONMENT = {**os.environ, "COLUMNS": "40", "PYTHONPATH": str(Path(__file__).parents[1])}


def _run(*arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "batchnorm", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=ENVIRONMENT, check=False)


def test_version() -> None:
    done = _run("--version")
    assert (done.returncode, done.stdout) == (0, f"batchnorm {__version__}\n")


def test_an_unknown_claim_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    done = _run("study", "nope", "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert done.stdout == ""
    assert f"unknown claim: nope. Known claims: {', '.join(registered())}." in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_list_has_one_full_row_a_claim_however_narrow_the_terminal() -> None:
    done = _run("study", "--list")
    assert done.returncode == 0
    rows = {row.split()[0]: row for row in done.stdout.splitlines()}
    assert list(rows) == list(registered())
    about = registered()["convergence"].about
    assert rows["convergence"].endswith(about.source)
    for part in (about.tier, f"about {about.budget:.0f} core-seconds", about.title):
        assert part in rows["convergence"]
    one = _run("study", "--list", "convergence")
    assert one.stdout.split() == rows["convergence"].split()


@pytest.mark.parametrize("option", ["--seeds", "--workers", "--samples", "--image-size"])
def test_zero_is_refused(option: str) -> None:
    assert _run("study", option, "0").returncode == 2


def test_a_network_of_the_users_is_for_the_claims_that_can_be_put_to_one(tmp_path: Path) -> None:
    done = _run("study", "--list", "--model", "study.own_networks:small")
    listed = [row.split()[0] for row in done.stdout.splitlines()]
    assert listed == [claim.id for claim in registered().values() if isinstance(claim, SubjectClaim)]
    assert {"learning-rate", "placement", "dropout-shift", "batch-size", "ema-vs-population"} <= set(listed)
    out = str(tmp_path / "out")
    done = _run("study", "placement", "eps-placement", "--model", "study.own_networks:small", "--out", out)
    assert (done.returncode, done.stdout) == (2, "")
    assert "eps-placement: not about a network that one could give (--model). Mend: name some of" in done.stderr
    done = _run("study", "placement", "--model", "study.own_networks:nothing", "--data", "digits", "--out", out)
    assert (done.returncode, done.stdout) == (2, "")
    assert "study.own_networks has no nothing" in done.stderr


def test_a_comparison_runs_nothing_and_refuses_what_would(tmp_path: Path) -> None:
    done = _run("study", "eps-placement", "--compare", str(tmp_path), str(tmp_path), "--ray", "local")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--compare runs nothing and takes all of both studies. Mend: leave out eps-placement --ray" in done.stderr


def test_an_option_that_could_have_no_effect_is_refused(tmp_path: Path) -> None:
    done = _run("study", "eps-placement", "--data", "digits", "--out", str(tmp_path / "out"))
    assert (done.returncode, done.stdout) == (2, "")
    assert "--data: none of these claims uses images: eps-placement." in done.stderr
    done = _run("study", "saturation", "--data", "digits", "--image-size", "16", "--out", str(tmp_path / "out"))
    assert (done.returncode, done.stdout) == (2, "")
    assert "--image-size: only the images of an image folder are resized" in done.stderr
    assert not (tmp_path / "out").exists()


def test_data_that_are_not_there_are_refused_before_anything_runs(tmp_path: Path) -> None:
    done = _run("study", "population-variance", "--data", "no-such-folder", "--out", str(tmp_path))
    assert done.returncode == 2
    assert "batchnorm study: data: there is no no-such-folder. Mend: name a file, a folder" in done.stderr
    assert done.stdout == ""


def test_a_folder_that_cannot_be_written_is_refused_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = _run("study", "gradient-explosion", "--out", str(tmp_path / "file" / "below"))
    assert done.returncode == 2
    assert "[1/" not in done.stdout


def test_a_study_away_from_a_terminal_ends_with_the_page_and_the_verdicts(tmp_path: Path) -> None:
    command = ("study", "eps-placement", "--workers", "1", "--out", str(tmp_path / "out"))
    done = _run(*command, "--seeds", "1")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    lines = done.stdout.splitlines()
    runs = len(registered()["eps-placement"].plan([0], Source("digits")))
    assert lines[0].split()[:3] == ["eps-placement", str(runs), "run" if runs == 1 else "runs"]
    assert "core-seconds" in lines[0]
    assert sum(line.startswith("[") for line in lines) == runs
    page, _, header, verdict = lines[-4:]
    assert page == f"page: {tmp_path / 'out' / 'index.html'}"
    assert header.split()[:2] == ["claim", "verdict"]
    # One seed has no interval, so nothing can be concluded.
    assert verdict.split()[:2] == ["eps-placement", "inconclusive"]
    stored = json.loads((tmp_path / "out" / "results.json").read_text("utf-8"))
    assert list(stored["claims"]) == ["eps-placement"]

    table = (tmp_path / "out" / "runs.csv").read_bytes()
    again = _run(*command, "--seeds", "1")
    assert again.returncode == 0, again.stderr
    assert f"{tmp_path / 'out' / 'runs'}: {runs} of {runs} run" in again.stdout
    assert not [line for line in again.stdout.splitlines() if line.startswith("[")]
    assert (tmp_path / "out" / "runs.csv").read_bytes() == table
    fresh = _run(*command, "--seeds", "1", "--fresh")
    assert sum(line.startswith("[") for line in fresh.stdout.splitlines()) == runs
    assert (tmp_path / "out" / "runs.csv").read_bytes() == table


def test_with_the_effect_taken_away_the_verdict_fails_and_the_page_says_so(tmp_path: Path) -> None:
    done = _run("study", "eps-placement", "--control", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split()[:3] == ["eps-placement", "not", "reproduced"]
    assert "effect taken away" in (tmp_path / "index.html").read_text("utf-8")


@pytest.mark.slow
def test_on_a_terminal_progress_is_drawn_and_cleared(tmp_path: Path) -> None:
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "batchnorm", "study", "gradient-explosion", "--seeds", "1", "--out", str(tmp_path)]
    with subprocess.Popen(command, stdout=slave, stderr=slave, env={**os.environ, "TERM": "xterm"}) as process:
        os.close(slave)
        shown = b""
        while True:
            try:
                piece = os.read(master, 65536)
            except OSError:
                break
            if not piece:
                break
            shown += piece
    os.close(master)
    assert process.returncode == 0
    assert b"all runs" in shown
    assert b"layer " in shown
    assert b"inconclusive" in shown.splitlines()[-1]


def test_missing_tools_are_named_with_the_mend(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = tools.importlib.util.find_spec
    monkeypatch.setattr(tools.importlib.util, "find_spec", lambda name: None if name == "typer" else find(name))
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert "needs typer. Mend: pip install 'batchnorm[tools]'" in capsys.readouterr().err
