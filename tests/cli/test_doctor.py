import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import batchnorm
from batchnorm.cli.app import app
from batchnorm.doctor.as_json import SCHEMA
from batchnorm.doctor.checkpoint import load

MODELS = """
import torch
from torch import nn


def net(momentum=0.1):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, momentum=momentum), nn.Linear(8, 3))


def build():
    print("building")
    return net()


def inverted():
    return net(0.99)


def poisoned():
    model = net()
    model[1].running_var[0] = float("nan")
    return model


def both():
    return poisoned(), [torch.randn(32, 4) for _ in range(2)]


def poisoned_and_inverted():
    model = poisoned()
    model[1].momentum = 0.99
    return model


passes = []


def batches():
    passes.append(1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        yield torch.randn(32, 4, generator=generator), torch.randint(3, (32,), generator=generator)


def broken_batches():
    yield torch.randn(32, 4)
    raise KeyError("the third column")


def leaving_batches():
    yield torch.randn(32, 4)
    raise SystemExit(0)


def keywords():
    return {"input": torch.randn(32, 4)}


one_pass = batches()


def optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


def another(model):
    return torch.optim.AdamW(net().parameters(), lr=1e-3)


def forward(model, batch):
    return model(batch[0])


def interrupted():
    raise KeyboardInterrupt


def exported():
    return torch.export.export(net(), (torch.randn(8, 4),))


class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, first, second):
        return self.net(first + second)


def three():
    return net(), 1, 2
"""


@pytest.fixture(autouse=True)
def _models(tmp_path, monkeypatch):
    (tmp_path / "my_doctored.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "my_doctored", raising=False)
    yield
    sys.modules.pop("my_doctored", None)


def run(*arguments: str):
    return CliRunner().invoke(app, ["doctor", *arguments])


def table(text: str) -> None:
    Path("pyproject.toml").write_text(f"[tool.batchnorm.doctor]\n{text}\n")


# Two rules that stand for all: of one a checkpoint is enough, of the other the model.
ONLY = ("--select", "BN004,BN011")


def test_clean_and_the_exit_codes():
    done = run("my_doctored:build", *ONLY)
    assert (done.exit_code, done.stdout) == (0, "no findings; 1 batch norm, 2 rules\n")
    assert "building" in done.stderr  # what the model prints is no part of the report
    done = run("my_doctored:inverted", *ONLY)
    assert done.exit_code == 1
    assert done.stdout.startswith("1: warning BN011 inverted-momentum: momentum is 0.99")
    assert run("my_doctored:inverted", *ONLY, "--fail-on", "error").exit_code == 0
    assert run("my_doctored:poisoned", *ONLY, "--fail-on", "error").exit_code == 1
    assert run("my_doctored:inverted", *ONLY, "--ignore", "inverted-momentum").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no TARGET"),
        (("my_doctored:nothing",), "my_doctored has no nothing"),
        (("no_such_module:build",), "there is no module no_such_module"),
        (("model.onnx",), "model.onnx is not of the form package.module:callable"),
        (("none.pt",), "No such file"),
        (("my_doctored:three",), "my_doctored:three gives Sequential, int, int."),
        (("my_doctored:keywords",), "gives dict"),
        (("my_doctored:build", "--select", "BN9"), "'BN9' is neither a rule"),
        (("my_doctored:build", "--select", ""), "no rule is selected"),
        (("my_doctored:build", "--select", " , "), "no rule is selected"),
        (("my_doctored:build", "--select", "BN011", "--ignore", "inverted-momentum"), "no rule is left"),
        (("my_doctored:build", "--format", "xml"), "--format"),
        (("my_doctored:build", "--max-batches", "0"), "--max-batches"),
        (("my_doctored:build", "--format", "html"), "--out FILE"),
        (("my_doctored:build", "--fix", "mended.onnx"), "nothing is known of .onnx"),
        (("my_doctored:build", "--config", "none.toml"), "No such file"),
        (("my_doctored:build", "--optimizer", "my_doctored:another"), "no parameter of the model"),
        (("my_doctored:build", "--optimizer", "my_doctored:build"), "calling it raised TypeError"),
        (("my_doctored:build", "--loss", "my_doctored:passes"), "a list, which cannot be called"),
        (("my_doctored:build", "--batches", "my_doctored:nothing"), "has no nothing"),
        (("my_doctored:build", "--batches", "my_doctored:broken_batches"), "KeyError: 'the third column'"),
        (("my_doctored:build", "--batches", "my_doctored:leaving_batches"), "ended in the exception above"),
        (("my_doctored:Wide", "--batches", "my_doctored:batches"), "raises in training mode"),
    ],
)
def test_what_cannot_run_ends_with_2(arguments, message):
    done = run(*arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stdout == ""


def test_interrupted():
    done = run("my_doctored:interrupted")
    assert done.exit_code == 130
    assert done.stderr.endswith("batchnorm doctor: interrupted.\n")


def test_batches_loss_optimizer_and_forward():
    done = run(
        "my_doctored:build",
        *("--batches", "my_doctored:batches", "--loss", "torch.nn:CrossEntropyLoss"),
        *("--optimizer", "my_doctored:optimizer", "--forward", "my_doctored:forward"),
        *("--max-batches", "2", "--format", "json", "--fail-on", "error"),
    )
    assert done.exit_code in (0, 1), done.stderr
    content = json.loads(done.stdout)
    jsonschema.validate(content, SCHEMA)
    reasons = " ".join(content["skipped"].values())
    assert "no batches" not in reasons
    assert "no optimizer" not in reasons
    assert "no batches" in " ".join(json.loads(run("my_doctored:build", "--format", "json").stdout)["skipped"].values())


@pytest.mark.parametrize("given", ["my_doctored:keywords", "my_doctored:one_pass"])
def test_batches_of_other_kinds(given):
    done = run("my_doctored:build", "--select", "BN011,BN001", "--batches", given)
    assert done.exit_code in (0, 1), done.stderr
    assert "not checked" not in done.stdout


def test_exported_programs():
    done = run("my_doctored:exported", "--select", "BN021")
    assert done.exit_code == 1
    assert "BN021" in done.stdout


def test_optimizers_by_their_class():
    done = run("my_doctored:build", "--select", "BN016", "--optimizer", "torch.optim:AdamW")
    assert done.exit_code in (0, 1), done.stderr
    assert "not checked" not in done.stdout


def test_a_checkpoint_has_what_needs_no_module():
    state = {"state_dict": {f"net.{name}": each for name, each in net().state_dict().items()}, "epoch": 3}
    state["state_dict"]["net.0.running_var"][1] = -1.0
    torch.save(state, "model.ckpt")
    done = run("model.ckpt")
    assert done.exit_code == 1
    assert "net.0: error BN004 poisoned-statistics: a running variance is negative" in done.stdout
    assert "only tensors were given, and this needs the model" in done.stdout
    done = run("model.ckpt", "--batches", "my_doctored:batches", "--loss", "torch.nn:MSELoss")
    assert done.exit_code == 2
    assert "nothing to do with --batches, --loss" in done.stderr


def net() -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm1d(4))


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("it-ran",)


def test_a_malicious_checkpoint_is_refused_and_does_not_run():
    torch.save({"state_dict": net().state_dict(), "note": Malicious()}, "model.pt")
    done = run("model.pt")
    assert done.exit_code == 2
    assert "posix.mkdir. It was refused" in done.stderr
    assert not Path("it-ran").exists()


def test_fix_saves_what_is_mended():
    done = run("my_doctored:poisoned", *ONLY, "--batches", "my_doctored:batches", "--fix", "mended.pt")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines() == [
        "no findings; 1 batch norm, 2 rules",
        "mended: 1: BN004: takes the statistics of all norms anew over all batches (batchnorm.recalibrate)",
        "written: mended.pt",
    ]
    model = sys.modules["my_doctored"].net()
    model.load_state_dict(torch.load("mended.pt", weights_only=True))
    assert batchnorm.diagnose(model, select=["BN004"]).ok
    done = run("my_doctored:both", *ONLY, "--fix", "mended.safetensors")
    assert done.exit_code == 0
    assert load(Path("mended.safetensors")).state["1.running_var"].isfinite().all()


def test_a_mend_that_no_file_holds_is_left():
    done = run("my_doctored:inverted", *ONLY, "--fix", "mended.pt")
    assert done.exit_code == 1
    assert done.stdout.startswith("1: warning BN011")
    assert "put it into your code: model.get_submodule" in done.stdout
    assert "mended.pt is not written" in done.stdout
    assert not Path("mended.pt").exists()
    both = ("my_doctored:poisoned_and_inverted", "--batches", "my_doctored:batches", "--fix", "mended.pt")
    done = run(*both, *ONLY)
    assert done.exit_code == 1
    assert "mended: 1: BN004" in done.stdout
    assert "not in the file, which holds values: 1: BN011" in done.stdout
    assert Path("mended.pt").exists()


def test_what_takes_a_decision_is_not_mended():
    done = run("my_doctored:poisoned", *ONLY, "--fix", "mended.pt")
    assert done.exit_code == 1
    assert "not mended, for it takes a decision: 1 of the findings" in done.stdout
    assert not Path("mended.pt").exists()


def test_a_checkpoint_is_mended_where_its_tensors_lie(monkeypatch):
    from batchnorm.doctor.finding import Fix, Measurement
    from batchnorm.doctor.rule import Rule

    def clamped(layer):
        return lambda subject: subject.state.update({f"{layer.path}.running_var": ones})

    class Negative(Rule):
        code, name, severity = "BN004", "poisoned-statistics", "error"

        def check(self, evidence):
            for layer in evidence.layers:
                least = float(layer.tensors["running_var"].min())
                if least < 0:
                    measured = {"least": Measurement(least, 0.0, "at least")}
                    yield self.found(layer, "negative.", measured, "x", fix=Fix("clamps", clamped(layer)))

    ones = torch.ones(4)
    module = sys.modules["batchnorm.doctor.diagnose"]  # in whose room a function has its name
    monkeypatch.setattr(module, "select_rules", lambda *_: [Negative()])
    state = {"model": net().state_dict(), "epoch": 3}
    state["model"]["0.running_var"][1] = -1.0
    torch.save(state, "model.pt")
    before = Path("model.pt").read_bytes()
    done = run("model.pt", "--fix", "mended.pt")
    assert (done.exit_code, done.stdout.splitlines()[1:]) == (0, ["mended: 0: BN004: clamps", "written: mended.pt"])
    mended = torch.load("mended.pt", weights_only=True)
    assert torch.equal(mended["model"]["0.running_var"], ones)
    assert mended["epoch"] == 3
    assert run("mended.pt").exit_code == 0
    done = run("model.pt", "--fix", "model.pt")
    assert done.exit_code == 2
    assert "is the checkpoint that was read" in done.stderr
    assert Path("model.pt").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "option"), [("a.json", ()), ("a.sarif", ()), ("a.sarif.json", ()), ("a.txt", ()), ("a.log", ("sarif",))]
)
def test_reports_as_files(name, option):
    done = run("my_doctored:inverted", *ONLY, "--out", name, *(f"--format={each}" for each in option))
    assert done.exit_code == 1
    assert "BN011" in done.stdout
    assert done.stdout.endswith(f"written: {name}\n") or option
    text = Path(name).read_text()
    if name == "a.json":
        jsonschema.validate(json.loads(text), SCHEMA)
    elif "sarif" in (name, *option) or ".sarif" in name:
        (result,) = json.loads(text)["runs"][0]["results"]
        physical = result["locations"][0]["physicalLocation"]
        assert physical["artifactLocation"]["uri"] == "my_doctored.py"
        assert MODELS.splitlines()[physical["region"]["startLine"] - 1] == "def inverted():"
    else:
        assert text.startswith("1: warning BN011")


def test_a_page(monkeypatch):
    monkeypatch.setattr(batchnorm.Diagnosis, "to_html", lambda self, path: path.write_text(str(self)))
    done = run("my_doctored:inverted", *ONLY, "--out", "page.html")
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (1, "written: page.html")
    assert Path("page.html").read_text().startswith("1: warning BN011")


def test_one_that_yields_is_called_for_each_pass():
    done = run("my_doctored:poisoned", *ONLY, "--batches", "my_doctored:batches", "--fix", "mended.pt")
    assert done.exit_code == 0
    # The look, the mend (two passes of two that it may need), the look by fix() and that for what is left.
    assert len(sys.modules["my_doctored"].passes) >= 4


def test_the_report_of_a_checkpoint_names_its_file():
    state = net().state_dict()
    state["0.running_var"][1] = -1.0
    torch.save(state, "model.pt")
    (result, *_) = json.loads(run("model.pt", "--select", "BN004", "--format", "sarif").stdout)["runs"][0]["results"]
    assert result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "model.pt"


def test_pyproject_is_read_and_the_command_line_wins():
    table('target = "my_doctored:inverted"\nselect = ["BN011"]\nfail-on = "error"')
    done = run()
    assert done.exit_code == 0
    assert "BN011" in done.stdout
    assert run("--fail-on", "warning").exit_code == 1
    assert "no findings" in run("--select", "BN004").stdout
    assert "no findings" in run("my_doctored:build").stdout
    table('[tool.batchnorm.doctor.per-layer-ignores]\n"1" = ["BN011"]')
    done = run("my_doctored:inverted", *ONLY)
    assert done.exit_code == 0
    assert "1 finding left out for their layers" in done.stdout
    table('ignore = ["BN011"]')
    assert run("my_doctored:inverted", *ONLY).exit_code == 0
    assert run("my_doctored:inverted", *ONLY, "--ignore", "").exit_code == 1
    table("fail_on = 'error'")
    done = run("my_doctored:inverted")
    assert done.exit_code == 2
    assert "pyproject.toml: [tool.batchnorm.doctor] fail_on: there is no such key" in done.stderr
    Path("other.toml").write_text("[tool.batchnorm.doctor]\nselect = ['BN004']\n")
    assert run("my_doctored:inverted", "--config", "other.toml").exit_code == 0


def test_on_a_terminal_it_has_colours_and_the_same_words(monkeypatch):
    from rich.console import Console

    plain = run("my_doctored:inverted", *ONLY).stdout
    monkeypatch.setattr(Console, "is_terminal", property(lambda self: True))
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured = run("my_doctored:inverted", *ONLY).stdout
    assert "\x1b[" in coloured
    import re

    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == plain


@pytest.mark.slow
def test_as_a_command_and_under_torchrun(tmp_path):
    command = [sys.executable, "-m", "batchnorm", "doctor", "my_doctored:inverted", *ONLY]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("1: warning BN011")
    ranks = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    arguments = ["my_doctored:build", "--select", "BN008,BN011", "--batches", "my_doctored:batches"]
    done = subprocess.run(
        [*ranks, "batchnorm", "doctor", *arguments], capture_output=True, text=True, check=False, timeout=180
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "no findings; 1 batch norm, 2 rules\n"
