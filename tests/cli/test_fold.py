import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from typer.testing import CliRunner

from batchnorm.cli import written
from batchnorm.cli.app import app
from batchnorm.surgery.fold import fold

MODELS = """
import torch
from torch import nn

torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
net[1].running_mean.normal_()
net[1].running_var.uniform_(0.5, 2)
x = torch.randn(2, 3, 6, 6)


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = net

    def forward(self, *, image, scale):
        return self.net(image) * scale


def both():
    return net, x


def step():
    return net, x, lambda output: output.mean()


def alone():
    return net


def inputs():
    return (x,)


def half():
    return nn.Sequential(net, nn.BatchNorm2d(8)), x


def named():
    return {"image": x, "scale": 2.0}


def broken():
    raise KeyError("no weights")


def leaves():
    raise SystemExit(0)


def meta():
    return nn.Sequential(net[0], net[1]).to("meta"), x


def silent():
    raise SystemExit


def unknown():
    @torch.library.custom_op("my_models::halved", mutates_args=())
    def halved(x: torch.Tensor) -> torch.Tensor:
        return x / 2

    halved.register_fake(torch.empty_like)

    class Unknown(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return halved(self.net(x))

    return Unknown(), x


def branch():
    class Branch(nn.Sequential):
        def forward(self, x):
            return super().forward(x) if x.sum() > -1e9 else x
    return Branch(net), x
"""


@pytest.fixture(autouse=True)
def _models(tmp_path, monkeypatch):
    (tmp_path / "my_models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "my_models", raising=False)
    yield
    sys.modules.pop("my_models", None)


def _run(*arguments: str):
    return CliRunner().invoke(app, ["fold", *arguments])


def _right() -> torch.Tensor:
    import my_models

    with torch.no_grad():
        return my_models.net.eval()(my_models.x)


def test_away_from_a_terminal_a_norm_is_one_full_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "batchnorm", "fold", "my_models:half", "--out", "deep/net.onnx"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "COLUMNS": "40", "OMP_NUM_THREADS": "1"},
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["0.1", "BatchNorm2d", "folded", "into", "0.0", "(Conv2d)"]
    assert lines[1].split()[:3] == ["1", "BatchNorm2d", "kept"]
    assert lines[1].endswith("before: its input is given by 0.2 (ReLU); after: its output leaves the model")
    assert lines[2].startswith("1 folded, 1 kept; largest relative difference on the example: ")
    assert lines[3:] == ["written: deep/net.onnx"]
    assert done.stderr == ""
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["net.onnx"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("my_models:both",),
        ("my_models:step",),
        ("my_models:alone", "--inputs", "my_models:inputs"),
        ("my_models:net", "--inputs", "my_models:x"),
        ("my_models:both", "--inputs", "my_models:inputs"),
        ("my_models:Named", "--inputs", "my_models:named"),
    ],
    ids=" ".join,
)
def test_what_a_target_may_be(arguments, tmp_path):
    done = _run(*arguments)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1].startswith("1 folded; ")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["my_models.py"]


def test_onnx(tmp_path):
    assert _run("my_models:both", "--out", "net.onnx").exit_code == 0
    file = tmp_path / "net.onnx"
    assert {node.op_type for node in onnx.load(file).graph.node} == {"Conv", "Relu"}
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    import my_models

    found = session.run(None, {session.get_inputs()[0].name: my_models.x.numpy()})[0]
    np.testing.assert_allclose(found, _right(), rtol=1e-4, atol=1e-5)


def test_a_suffix_in_capitals(tmp_path):
    assert _run("my_models:both", "--out", "net.PT").exit_code == 0
    assert torch.load(tmp_path / "net.PT", weights_only=True)["0.weight"].shape == (8, 3, 3, 3)


@pytest.mark.parametrize(
    ("target", "name", "words"),
    [
        ("my_models:unknown", "net.ONNX", "my_models.halved"),
        ("my_models:branch", "net.onnx", "data-dependent"),
        ("my_models:branch", "net.pt2", "data-dependent"),
    ],
)
def test_why_a_file_cannot_be_written_is_said_in_one_line(target, name, words, tmp_path):
    """The exporters print the graph they have so far, and raise errors that are pages long around the cause."""
    done = _run(target, "--out", name)
    assert done.exit_code == 2
    assert len(done.stdout.splitlines()) == 2  # one norm, and the summary
    (said,) = done.stderr.splitlines()
    assert f"the folded model cannot be written as .{name.partition('.')[2]}: " in said
    assert words in said
    assert not list(tmp_path.glob("*net.*"))


def test_onnx_of_named_arguments(tmp_path):
    assert _run("my_models:Named", "--inputs", "my_models:named", "--out", "net.onnx").exit_code == 0
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    import my_models

    found = session.run(None, {"image": my_models.x.numpy()})[0]
    np.testing.assert_allclose(found, 2 * _right(), rtol=1e-4, atol=1e-5)


def test_an_exported_program(tmp_path):
    assert _run("my_models:both", "--out", "net.pt2").exit_code == 0
    import my_models

    program = torch.export.load(tmp_path / "net.pt2")
    assert not any("norm" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(my_models.x), _right())


@pytest.mark.parametrize("name", ["net.pt", "net.pth"])
def test_a_state_dict_is_for_the_folded_model_of_the_same_code(name, tmp_path):
    assert _run("my_models:both", "--out", name).exit_code == 0
    right = _right()
    import my_models

    for parameter in my_models.net.parameters():
        torch.nn.init.normal_(parameter)
    model = fold(*my_models.both()).model
    model.load_state_dict(torch.load(tmp_path / name, weights_only=True))
    torch.testing.assert_close(model(my_models.x), right)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["my_models:both", "--out", "net.tflite"], "--out net.tflite: nothing is known of .tflite. Mend: name a file"),
        (["my_models:both", "--out", "net"], "--out net: nothing is known of a name without a suffix"),
        (["my_models:both", "--out", "taken.pt"], "--out taken.pt is a folder"),
        (["my_models"], "is not of the form package.module:callable"),
        (["no_such_package:x"], "there is no module no_such_package"),
        (["my_models:alone"], "my_models:alone gives a module without inputs. Mend: give them by --inputs"),
        (["my_models:x", "--inputs", "my_models:x"], "my_models:x gives Tensor. Mend: name a module"),
        (["math:pi"], "math:pi gives float. Mend: name a module"),
        (["my_models:broken"], "my_models:broken: calling it raised KeyError: 'no weights'."),
        (["my_models:leaves"], "my_models:leaves: calling it raised SystemExit: 0. Mend: name a callable"),
        (["my_models:silent"], "my_models:silent: calling it raised SystemExit. Mend: name a callable"),
        (["my_models:net", "--inputs", "my_models:leaves"], "my_models:leaves: calling it raised SystemExit"),
        (["my_models:meta"], "0.weight is on the meta device"),
        (["my_models:net", "--inputs", "my_models:broken"], "my_models:broken: calling it raised KeyError"),
        (["my_models:net", "--inputs", "math:pi"], "the model raises on the example inputs: "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_run_is_refused(arguments, message, tmp_path):
    (tmp_path / "taken.pt").mkdir()
    done = _run(*arguments)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.startswith("batchnorm fold: ")
    assert message in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__") == [
        "my_models.py",
        "taken.pt",
    ]


def test_what_cannot_be_exported_leaves_the_former_file(tmp_path):
    former = tmp_path / "net.pt2"
    former.write_text("former")
    done = _run("my_models:branch", "--out", "net.pt2")
    assert done.exit_code == 2
    assert "1 folded; " in done.stdout
    assert "the folded model cannot be written as .pt2: " in done.stderr
    assert former.read_text() == "former"
    assert [path.name for path in tmp_path.glob("*net*")] == ["net.pt2"]


def test_an_interrupt_leaves_the_former_file(tmp_path, monkeypatch):
    def interrupt(model, inputs, path):
        path.write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setitem(written._FORMS, ".pt", interrupt)
    (tmp_path / "net.pt").write_text("former")
    done = _run("my_models:both", "--out", "net.pt")
    assert done.exit_code == 130
    assert "interrupted; nothing is written" in done.stderr
    assert [path.name for path in tmp_path.iterdir() if "net" in path.name] == ["net.pt"]
    assert (tmp_path / "net.pt").read_text() == "former"


def test_missing_packages_are_named_before_anything_runs(monkeypatch):
    find = written.importlib.util.find_spec
    monkeypatch.setattr(written.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    done = _run("my_models:broken", "--out", "net.onnx")
    assert done.exit_code == 2
    assert "--out net.onnx needs onnxscript. Mend: pip install onnxscript" in done.stderr
    assert Path("my_models.py").is_file()
