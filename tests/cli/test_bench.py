import os
import pty
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from batchnorm.bench import model as measured
from batchnorm.bench import run
from batchnorm.bench.cases import Case, all_cases, usual_cases
from batchnorm.bench.row import COLUMNS, read
from batchnorm.cli import model_timings
from batchnorm.cli.app import app
from batchnorm.cli.timings import cells, header
from batchnorm.errors import ArgumentError
from bench.helpers import Wrong, beside, row

ENVIRONMENT = {**os.environ, "COLUMNS": "40", "OMP_NUM_THREADS": "1"}
TINY = ("--cases", "2x8,norm,float32", "--rounds", "2")


def _run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "batchnorm", "bench", *arguments]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        env=ENVIRONMENT,
        check=False,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
    )


def test_away_from_a_terminal_a_case_is_one_full_line_however_narrow_it_is(tmp_path):
    done = _run("--cases", "2x8,float32", "--rounds", "2", "--out", str(tmp_path / "rows.csv"))
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    lines = done.stdout.splitlines()
    assert lines[0].split("  ")[0] == "case"
    names = [
        "2x8/norm+relu/contiguous/float32",
        "2x8/evaluation+relu/contiguous/float32",
        "2x8/norm/contiguous/float32",
    ]
    assert [line.split()[0] for line in lines[1:4]] == names
    assert all(re.search(r"(%|–)/(\d+%|–)$", line) for line in lines[1:4])
    assert lines[-1] == f"written: {tmp_path / 'rows.csv'}"
    rows = read(tmp_path / "rows.csv")
    assert [(each.case, each.contender) for each in rows] == [
        (name, contender) for name in names for contender in ("batchnorm", "eager")
    ]
    assert all(each.status == "timed" for each in rows)
    assert all(each.environment.threads == 1 for each in rows)


def test_a_folder_gets_the_page(tmp_path):
    done = _run(*TINY, "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"written: {tmp_path / 'out' / 'index.html'}"
    assert (tmp_path / "out" / "bench.csv").read_text().startswith(",".join(COLUMNS))


def test_the_list_has_a_line_a_case_and_measures_nothing():
    done = CliRunner().invoke(app, ["bench", "--list"])
    assert done.exit_code == 0
    assert [line.split()[0] for line in done.stdout.splitlines()] == [case.name for case in usual_cases()]
    done = CliRunner().invoke(app, ["bench", "--list", "--cases", "all"])
    assert len(done.stdout.splitlines()) == len(all_cases())
    done = CliRunner().invoke(app, ["bench", "--list", "--cases", "resnet50,norm+add+act,float32,contiguous"])
    assert done.stdout.splitlines()[0].split() == [
        "32x256x56x56/norm+add+relu/contiguous/float32",
        "norm+add+act",
        "resnet50",
        "×3",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cases", "nope"], "batchnorm bench: no case is named nope. Mend: use usual, all"),
        (["--peers", "apex"], "batchnorm bench: no peer is named apex."),
        (["--model", "x:y", "--cases", "all"], "leave out --cases and --list"),
        (["--model", "no_such_package:x"], "there is no module no_such_package"),
        (["--model", "math:pi"], "math:pi is a float, which cannot be called"),
        (["--model", "torch.nn:Identity"], "torch.nn:Identity: the model has no batch norm layer"),
        (["--out", "page.html"], "page.html is neither a .csv file nor a folder"),
        (["--rounds", "1"], "greater than or equal to 2"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_does(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "measure", None)
    done = CliRunner().invoke(app, ["bench", *arguments])
    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_result_prints_no_time_and_fails(monkeypatch):
    real = run.measure
    monkeypatch.setattr(run, "measure", lambda *given: real(*given, ours=Wrong("output")))
    done = CliRunner().invoke(app, ["bench", "--cases", "64x16,norm,float32", "--rounds", "2"])
    assert done.exit_code == 1
    line = done.stdout.splitlines()[1].split()
    assert line[:2] == ["64x16/norm/contiguous/float32", "wrong"]
    assert "batchnorm is wrong, and not timed: output: error 0.001, allowed" in done.stdout


@pytest.mark.parametrize(
    ("error", "exit_code", "words"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (ArgumentError("it is no case.", "leave it out."), 2, "batchnorm bench: it is no case. Mend: leave it out."),
        (MemoryError("too large"), 1, ""),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_was_measured_before_an_interrupt_or_an_error_is_kept(error, exit_code, words, monkeypatch, tmp_path):
    real = run.measure

    def second(case, *rest):
        if "bfloat16" in case.name:
            raise error
        return real(case, *rest)

    monkeypatch.setattr(run, "measure", second)
    done = CliRunner().invoke(app, ["bench", "--cases", "2x8,norm", "--rounds", "2", "--out", str(tmp_path / "a.csv")])
    assert done.exit_code == exit_code
    assert words in done.stderr
    # What nobody expected keeps its traceback.
    assert done.exception is error or isinstance(done.exception, SystemExit)
    assert [row.dtype for row in read(tmp_path / "a.csv")] == ["float32"] * 2
    assert f"written: {tmp_path / 'a.csv'}" in done.stdout


def test_a_model_is_measured(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "def net():\n"
        "    layers = torch.nn.Linear(3, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Linear(8, 2)\n"
        "    return torch.nn.Sequential(*layers), torch.randn(16, 3)\n"
    )
    done = _run("--model", "mine:net", "--rounds", "2", "--out", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "mine:net"
    assert [line.split("  ")[0] for line in lines[2:6]] == ["training step", "eager", "fuse", "lean"]
    assert [line.split("  ")[0] for line in lines[7:10]] == ["inference", "eager", "fold"]
    times = r"  [\d.]+ [µm]s"
    gain = r"  [\d.]+ \[[\d.]+ [\d.]+\] "
    assert all(re.search(times, line) for line in (*lines[3:6], *lines[8:10]))
    assert all(re.search(gain, line) for line in (*lines[4:6], lines[9]))
    assert lines[11] == "fuse: 1 fused: relu"
    assert re.fullmatch(r"fuse: largest relative difference from the model as given: \S+ in float64, .*", lines[12])
    assert lines[13] == "lean: 1 recomputed"
    assert "fold: 1 folded: into Linear" in lines
    assert "as given, " in done.stdout
    assert "of the step is norms" in done.stdout
    found = read(tmp_path / "out" / "bench.csv")
    assert [(each.mode, each.contender) for each in found] == [
        *(("model", name) for name in ("eager", "fuse", "lean")),
        *(("model inference", name) for name in ("eager", "fold")),
    ]
    assert "The training step of mine:net" in (tmp_path / "out" / "index.html").read_text("utf-8")
    assert done.stderr == ""


OF_A_MODEL = {"case": "net:build", "shape": ""}


def test_who_is_not_timed_in_a_model_says_why_and_reasons_are_a_line_each():
    training, inference = ({**OF_A_MODEL, "mode": mode} for mode in ("model", "model inference"))
    eager = row(Case((2, 8)), "eager", kept_bytes=1000, **training)
    fused = row(Case((2, 8)), "fuse", norms="2 fused: relu | 1 kept: so", max_error=1e-7, kept_bytes=500, **training)
    fused = replace(fused, speedup=1.5, speedup_low=1.4, speedup_high=1.6, max_error_float64=2e-16)
    lean = row(Case((2, 8)), "lean", ratio=1.04, ratio_low=1.0, ratio_high=1.1, max_error=0.0, **training)
    wrong = row(Case((2, 8)), "compile", status="wrong", microseconds=None, reason="loss: off", **training)
    folded = row(Case((2, 8)), "fold", status="unavailable", microseconds=None, reason="no", **inference)
    assert model_timings.cells(eager, eager) == ("eager", "100 µs", "", "1.0 kB", "", "–")
    assert model_timings.cells(fused, eager) == ("fuse", "100 µs", "1.50 [1.40 1.60]", "0.5 kB", "0.50", "–")
    assert model_timings.cells(wrong, eager) == ("compile", "wrong", "", "–", "", "–")
    assert model_timings.cells(folded, None) == ("fold", "–", "", "", "", "–")
    assert list(model_timings.remarks([eager, fused, lean, wrong, folded])) == [
        "fuse: 2 fused: relu",
        "fuse: 1 kept: so",
        "fuse: largest relative difference from the model as given: 2.0e-16 in float64, 1.0e-07 in its own dtype",
        "lean: largest relative difference from the gradients of fuse: 0",
        "lean: 1.04 [1.00 1.10] times the time of fuse",
        "compile is wrong, and not timed: loss: off",
        "fold (inference): no",
    ]


def test_a_wrong_model_fails(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "wrong_net.py").write_text(
        "import torch\ndef net():\n    return torch.nn.Sequential(torch.nn.BatchNorm1d(3)), torch.randn(16, 3)\n"
    )
    off = row(Case((2, 8)), "fuse", status="wrong", microseconds=None, reason="loss: off", **OF_A_MODEL, mode="model")
    monkeypatch.setattr(measured, "measure_model", lambda *given: [off])
    done = CliRunner().invoke(app, ["bench", "--model", "wrong_net:net"])
    assert done.exit_code == 1
    assert "fuse is wrong, and not timed: loss: off" in done.stdout


def test_missing_tools_are_named_with_the_mend(monkeypatch, tmp_path):
    from batchnorm.cli import tools

    find = tools.importlib.util.find_spec
    monkeypatch.setattr(tools.importlib.util, "find_spec", lambda name: None if name == "plotly" else find(name))
    done = CliRunner().invoke(app, ["bench", *TINY, "--out", str(tmp_path / "out")])
    assert done.exit_code == 2
    assert "needs plotly. Mend: pip install 'batchnorm[tools]'" in done.stderr
    assert CliRunner().invoke(app, ["bench", *TINY]).exit_code == 0


def test_a_line_has_a_cell_a_column():
    case = Case((32, 64, 56, 56), "relu")
    rows = beside(case, 2.5, kept_bytes=2_500_000, fault_share=0.125, times_limit=1.5)
    rows.append(row(case, "compile", status="unavailable", microseconds=None, reason="no compiler"))
    line = cells(rows, ["eager", "compile"])
    assert len(line) == len(header(["eager", "compile"]))
    assert line == [
        case.name,
        "100 µs",
        "250 µs",
        "2.50 [2.45 2.55]",
        "–",
        "",
        "1.50",
        "2.5 MB/2.5 MB",
        "12%/12%",
    ]


@pytest.mark.parametrize(
    ("microseconds", "words"), [(0.5, "0.5 µs"), (999.4, "999 µs"), (1234, "1.23 ms"), (2.5e6, "2500 ms")]
)
def test_times_are_read_at_a_glance(microseconds, words):
    rows = beside(Case((2, 8)), 1.0)
    rows[0] = row(Case((2, 8)), "batchnorm", microseconds=microseconds)
    assert cells(rows, ["eager"])[1] == words


@pytest.mark.slow
def test_on_a_terminal_a_table_ends_the_run() -> None:
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "batchnorm", "bench", *TINY]
    environment = {**ENVIRONMENT, "TERM": "xterm", "COLUMNS": "160"}
    with subprocess.Popen(command, stdout=slave, stderr=slave, env=environment) as process:
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
    assert "2x8/norm/contiguous/float32" in shown.decode()
    assert "eager ÷ ours" in shown.decode()
