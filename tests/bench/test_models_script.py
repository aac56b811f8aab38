"""``benchmarks/models.py``: the document says what the rows say, and a run goes on where it was."""

from dataclasses import replace

import pytest

from batchnorm.bench.cases import Case
from batchnorm.bench.row import read, write
from batchnorm.errors import ArgumentError
from bench.helpers import row
from surgery.models import NETWORKS, script

models = script("models")
RESNET, _, DENSENET, *_ = NETWORKS


def some_rows(name=RESNET, mode="model", **of_lean):
    about = {"case": name, "mode": mode, "shape": "32x3x224x224", "format": "channels-last", "dtype": "bfloat16"}
    norms = {"norms_fused": 49, "norms_replaced": 4, "norms_folded": 0, "norms_kept": 0}

    def gain(value):
        return {"speedup": value, "speedup_low": value - 0.01, "speedup_high": value + 0.01}

    fuse = {"norms": "49 fused: relu | 4 replaced: so", "max_error": 2e-3, "max_error_float64": 3e-13, **norms}
    lean = {"ratio": 1.04, "ratio_low": 1.03, "ratio_high": 1.05, "kept_bytes": 550_000_000, **of_lean}
    fold = {**norms, "norms_folded": 53, "max_error": 1e-6, "status": "unavailable", "reason": "no fold", "mode": "i"}
    return [
        row(Case((2, 8)), "eager", kept_bytes=1_000_000_000, microseconds=2.5e6, **about, **gain(1.0)),
        row(Case((2, 8)), "fuse", kept_bytes=800_000_000, **about, **gain(1.3), **fuse),
        row(Case((2, 8)), "lean", **about, **gain(1.2), **lean),
        row(Case((2, 8)), "fold", microseconds=None, **about | fold | {"mode": "model inference"}),
    ]


def test_the_document_is_that_of_the_rows():
    assert models.DOCUMENT.read_text(encoding="utf-8") == models.page(read(models.CSV))


def test_every_number_of_the_document_is_in_a_row():
    text = models.page(some_rows())
    lines = text.splitlines()
    assert f"| {RESNET}, bfloat16 autocast: eager ÷ fuse | 1.30× | at least 1.25× | met |" in lines
    assert f"| {RESNET}: bytes kept with lean ÷ eager's | 0.55× | at most 0.60× | met |" in lines
    assert f"| {RESNET}: time with lean ÷ without | 1.04× | at most 1.05× | met |" in lines
    assert f"| {DENSENET}: bytes kept with lean ÷ eager's | not measured | at most 0.56× |  |" in lines
    setting = "32x3x224x224, channels-last, bfloat16 autocast"
    assert f"| {RESNET} | {setting} | 49 / 4 / 0 | 3e-13, 2e-03 | 53 / 0 | 1e-06 |" in lines
    times = "2500 ms | 1.30 [1.29 1.31] | 1.20 [1.19 1.21] | 1.04 [1.03 1.05] | 1000 MB | 0.800 | 0.550 | – | –"
    assert f"| {RESNET} | {times} |" in lines
    assert f"- {RESNET}, `fuse`: 49 fused: relu; 4 replaced: so." in lines
    assert f"- {RESNET}, `fold`: not timed: no fold." in lines
    missed = models.page(some_rows(kept_bytes=700_000_000, ratio=1.2))
    assert f"| {RESNET}: bytes kept with lean ÷ eager's | 0.70× | at most 0.60× | missed |" in missed
    assert f"| {RESNET}: time with lean ÷ without | 1.20× | at most 1.05× | missed |" in missed


def test_a_run_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(models, "NETWORKS", {name: NETWORKS[name] for name in ("UNet (monai)", "nn.Sequential")})
    measured = []

    def measure(name, *rest):
        measured.append((name, *rest[1:]))
        about = {"case": name, "mode": "model", "shape": ""}
        return [
            row(Case((2, 8)), each, **about, speedup=1.23499, speedup_low=1.0, speedup_high=2.0)
            for each in ("eager", "fuse")
        ]

    monkeypatch.setattr(models, "measure", measure)
    monkeypatch.setattr(models.Environment, "now", lambda seconds: row(Case((2, 8)), "eager").environment)
    arguments = ["--csv", str(tmp_path / "models.csv"), "--rounds", "2"]
    assert models.main([*arguments, "--networks", "sequential", "--batch", "2"]) == 0
    assert measured == [("nn.Sequential", 2, 224, 2, 2)]
    assert (tmp_path / "models.md").read_text() == models.page(read(tmp_path / "models.csv"))
    assert models.main(arguments) == 0
    assert measured[1:] == [("UNet (monai)", 2, 64, 2, 2)]
    assert [each.case for each in read(tmp_path / "models.csv")] == ["UNet (monai)"] * 2 + ["nn.Sequential"] * 2
    assert models.main([*arguments, "--fresh", "--networks", "unet"]) == 0
    assert [name for name, *_ in measured[2:]] == ["UNet (monai)"]
    assert models.main([*arguments, "--draw"]) == 0
    assert len(measured) == 3
    with pytest.raises(ArgumentError, match="no network has 'alexnet' in its name"):
        models.main([*arguments, "--networks", "alexnet"])
    rows = [replace(each, environment=replace(each.environment, threads=7)) for each in read(tmp_path / "models.csv")]
    write(rows, tmp_path / "models.csv")
    with pytest.raises(ArgumentError, match="the rows that are there have threads 7, and this is 2"):
        models.main([*arguments, "--fresh"])
    capsys.readouterr()


def test_a_network_is_measured_with_every_tool():
    name = "nn.Sequential"
    rows = models.measure(name, NETWORKS[name], batch=8, size=32, example=4, rounds=2)
    assert [(each.mode, each.contender) for each in rows] == [
        *(("model", who) for who in ("eager", "fuse", "lean")),
        *(("model inference", who) for who in ("eager", "fold")),
    ]
    assert {each.status for each in rows} == {"timed"}
    assert {(each.case, each.shape, each.format, each.dtype) for each in rows} == {
        (name, "8x3x32x32", "channels-last", "float32")
    }
    assert f"| {name} | 8x3x32x32, channels-last, float32 | 3 / 1 / 0 |" in models.page(rows)
