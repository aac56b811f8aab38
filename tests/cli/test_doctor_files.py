"""What ``batchnorm doctor`` writes where, and where it finds what is named."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import batchnorm
from batchnorm.cli.app import app

MODELS = """
import torch
from torch import nn


def inverted():
    return nn.Sequential(nn.BatchNorm1d(8, momentum=0.99))


def halves():
    model = nn.Sequential(nn.BatchNorm1d(8), nn.BatchNorm1d(8))
    model(torch.randn(32, 8, generator=torch.Generator().manual_seed(0)))
    model[1].half()
    return model


def poisoned_halves():
    model = halves()
    model[1].running_var[0] = torch.nan
    return model


def batches():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(32, 8, generator=generator) for _ in range(3)]


def forward(model, batch):
    return model[1](model[0](batch).to(model[1].weight.dtype))


def unicode():
    return nn.ModuleDict({"层": nn.BatchNorm1d(8, momentum=0.99)})


def many():
    return nn.Sequential(*[nn.BatchNorm1d(8, momentum=0.9 + number / 1e4) for number in range(900)])
"""


@pytest.fixture(autouse=True)
def _models(tmp_path, monkeypatch):
    (tmp_path / "my_written.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "my_written", raising=False)
    yield
    sys.modules.pop("my_written", None)


def run(*arguments: str):
    return CliRunner().invoke(app, ["doctor", *arguments])


def checkpoint(name: str) -> bytes:
    torch.save(nn.Sequential(nn.BatchNorm1d(4)).state_dict(), name)
    return Path(name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mine.pt", "--out", "mine.pt"), "--out mine.pt is TARGET."),
        (("mine.pt", "--out", "link"), "--out link is TARGET."),
        (("mine.pt", "--out", "./../{here}/mine.pt"), "is TARGET."),
        (("my_written:halves", "--fix", "a.pt", "--out", "a.pt"), "--out a.pt is --fix."),
        (("my_written:inverted", "--out", "other.PTH"), "--out other.PTH is called like a checkpoint"),
        (("my_written:inverted", "--out", "mine.safetensors", "--format", "json"), "is called like a checkpoint"),
        (("my_written:inverted", "--config", "my.toml", "--out", "my.toml"), "--out my.toml is the configuration."),
        (("my_written:inverted", "--out", "."), "--out . is a folder."),
    ],
)
def test_a_report_destroys_nothing(arguments, message):
    before = checkpoint("mine.pt")
    Path("link").symlink_to("mine.pt")
    Path("my.toml").write_text("[tool.batchnorm.doctor]\n")
    there = sorted(Path.cwd().iterdir())
    done = run(*(each.format(here=Path.cwd().name) for each in arguments))
    assert done.exit_code == 2
    assert f"{message} Mend: name another file" in done.stderr or f"{message}, and a report is none" in done.stderr
    assert Path("mine.pt").read_bytes() == before
    assert Path("link").is_symlink()
    assert sorted(each for each in Path.cwd().iterdir() if each.name != "__pycache__") == there


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_report_through_a_pipe():
    os.mkfifo("pipe")
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(Path("pipe").read_text()), daemon=True)
    reader.start()
    done = run("my_written:inverted", "--select", "BN011", "--format", "json", "--out", "pipe")
    assert done.exit_code == 1
    assert Path("pipe").is_fifo()
    reader.join(10)
    assert [json.loads(each)["ok"] for each in read] == [False]


def test_a_report_with_a_long_name():
    name = "b" * 240 + ".json"
    done = run("my_written:inverted", "--select", "BN011", "--out", name)
    assert done.exit_code == 1, done.stderr
    assert not json.loads(Path(name).read_text())["ok"]


def test_a_dtype_is_none_that_a_file_brings():
    done = run("my_written:halves", "--select", "BN014", "--fix", "mended.pt")
    assert "not in the file, which holds values: 1: BN014: put it into your code: model" in done.stdout
    assert "mended.pt is not written: nothing is mended that a file of tensors holds" in done.stdout
    assert not Path("mended.pt").exists()
    assert "1: info BN014" in done.stdout


def test_what_a_file_brings_beside_a_dtype_is_saved():
    given = ("--batches", "my_written:batches", "--forward", "my_written:forward", "--fix", "mended.pt")
    done = run("my_written:poisoned_halves", "--select", "BN004,BN014", *given)
    assert "\nmended: 1: BN004" in done.stdout
    assert "not in the file, which holds values: 1: BN014" in done.stdout
    model = sys.modules["my_written"].halves()
    model.load_state_dict(torch.load("mended.pt", weights_only=True))
    assert batchnorm.diagnose(model, select=["BN004"]).ok
    # It is what is left: the model that loads the file has it still.
    assert [each.layer for each in batchnorm.diagnose(model, select=["BN014"]).findings] == ["1"]
    assert "1: info BN014" in done.stdout


def test_in_a_checkpoint_a_dtype_is_mended():
    sys.path.insert(0, str(Path.cwd()))
    import my_written

    torch.save({"net": my_written.halves().state_dict()}, "halves.pt")
    done = run("halves.pt", "--select", "BN014", "--fix", "mended.pt")
    assert "mended: 1: BN014: makes its statistics, gamma and beta float32\nwritten: mended.pt" in done.stdout
    assert torch.load("mended.pt", weights_only=True)["net"]["1.running_var"].dtype == torch.float32


def test_what_is_told_of_a_mend_cannot_steer_a_terminal():
    state = {f"\x1b[31mred\n{name}": each.half() for name, each in nn.BatchNorm1d(4).state_dict().items()}
    torch.save({name.replace("\n", "\n."): each for name, each in state.items()}, "coloured.pt")
    done = run("coloured.pt", "--select", "BN014", "--fix", "mended.pt")
    assert "mended: \\x1b[31mred\\n: BN014" in done.stdout
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize("option", [(), ("--config", "../pyproject.toml")])
def test_targets_of_a_table_are_found_from_a_folder_below_it(monkeypatch, option):
    Path("pyproject.toml").write_text(
        '[tool.batchnorm.doctor]\ntarget = "my_written:inverted"\nbatches = "my_written:batches"\nselect = ["BN011"]\n'
    )
    Path("below").mkdir()
    monkeypatch.chdir("below")
    done = run(*option)
    assert done.exit_code == 1, done.stderr
    assert done.stdout.startswith("0: warning BN011")


def test_a_checkpoint_of_a_table_is_found_from_a_folder_below_it(monkeypatch):
    checkpoint("mine.pt")
    Path("pyproject.toml").write_text('[tool.batchnorm.doctor]\ntarget = "mine.pt"\nselect = ["BN004"]\n')
    Path("below").mkdir()
    monkeypatch.chdir("below")
    assert run().stdout.startswith("no findings; 1 batch norm, 1 rule")


def command(*arguments: str, **other) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, "-m", "batchnorm", "doctor", *arguments]
    environment = {**os.environ, **other.pop("environment", {})}
    return subprocess.run(call, text=True, check=False, timeout=120, env=environment, **other)


def test_a_reader_that_has_enough():
    reading, writing = os.pipe()
    os.close(reading)
    done = command("my_written:many", "--select", "BN011", stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_terminal_without_the_letters():
    ascii_only = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = command("my_written:unicode", "--select", "BN011", capture_output=True, environment=ascii_only)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith("\\u5c42: warning BN011")
