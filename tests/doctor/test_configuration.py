import sys
from dataclasses import replace
from pathlib import Path

import pytest

from batchnorm.doctor import configuration
from batchnorm.doctor.configuration import Configuration, find, read
from batchnorm.errors import ArgumentError

FULL = """
[project]
name = "mine"

[tool.batchnorm.doctor]
target = "my_models:build"
batches = "my_data:batches"
loss = "torch.nn.functional:cross_entropy"
optimizer = "my_models:optimizer"
forward = "my_models:forward"
before = "my_models:plain"
select = ["BN00", "inverted-momentum"]
ignore = ["BN004"]
fail-on = "error"
max-batches = 4
accumulation-steps = 2
weights-from = "keras"

[tool.batchnorm.doctor.per-layer-ignores]
"encoder.*" = ["BN011", "BN01"]
"""


@pytest.fixture
def project(tmp_path) -> Path:
    (tmp_path / "package" / "deeper").mkdir(parents=True)
    return tmp_path


def written(folder: Path, text: str) -> Path:
    path = folder / "pyproject.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_every_key(project):
    path = written(project, FULL)
    settings = read(path)
    assert settings == Configuration(
        path=path,
        target="my_models:build",
        batches="my_data:batches",
        loss="torch.nn.functional:cross_entropy",
        optimizer="my_models:optimizer",
        forward="my_models:forward",
        before="my_models:plain",
        select=("BN00", "inverted-momentum"),
        ignore=("BN004",),
        fail_on="error",
        max_batches=4,
        accumulation_steps=2,
        weights_from="keras",
        per_layer_ignores={"encoder.*": ("BN011", "BN01")},
    )
    # None that the table knows is missing above.
    assert all(vars(settings).values())


def test_it_is_looked_for_upwards_and_files_without_the_table_are_passed_by(project):
    path = written(project, FULL)
    written(project / "package", "[project]\nname = 'inner'\n")
    written(project / "package" / "deeper", "this is [no TOML")
    assert find(project / "package" / "deeper").path == path
    nearer = written(project / "package", "[tool.batchnorm.doctor]\nfail-on = 'info'\n")
    assert find(project / "package" / "deeper").path == nearer
    assert find(project).path == path


def test_without_a_table_nothing_is_said(project):
    written(project, "# batchnorm is only named here\n[tool.ruff]\nline-length = 120\n")
    assert find(project) == Configuration()
    with pytest.raises(ArgumentError, match=r"has no \[tool\.batchnorm\.doctor\]"):
        read(project / "pyproject.toml")
    with pytest.raises(FileNotFoundError):
        read(project / "none.toml")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("selct = ['BN001']", r"selct: there is no such key\. Mend: did you mean select\? The keys are target, .*"),
        ("fail_on = 'error'", r"fail_on: there is no such key\. Mend: did you mean fail-on\?"),
        ("path = 'x'", r"path: there is no such key\. "),
        ("format = 'text'", r"format: there is no such key\. "),
        ("select = 'BN001'", r"select: 'BN001' is not a list of rules' codes or names\."),
        ("select = []", r"select: \[\] selects no rule\. Mend: name some"),
        ("select = [4]", r"select: \[4\] is not a list of rules"),
        ("select = ['BN999']", r"select: 'BN999' is neither a rule nor the beginning of one's code\."),
        ("ignore = ['']", r"ignore: '' is neither a rule"),
        ("fail-on = 'fatal'", r"fail-on: 'fatal' is not one of info, warning, error\."),
        ("max-batches = 0", r"max-batches: 0 is not a number from 1 on\."),
        ("max-batches = true", r"max-batches: True is not a number"),
        ("accumulation-steps = 1.5", r"accumulation-steps: 1\.5 is not a number"),
        ("target = ''", r"target: '' is not a text\."),
        ("batches = 3", r"batches: 3 is not a text\."),
        ("per-layer-ignores = ['BN001']", r"per-layer-ignores: \['BN001'\] is not a table of layers' paths"),
        ("per-layer-ignores = {'a.*' = ['BN999']}", r"per-layer-ignores: 'BN999' is neither a rule"),
        ("per-layer-ignores = {'a.*' = 'BN001'}", r"per-layer-ignores: 'BN001' is not a list"),
    ],
)
def test_what_is_wrong_is_named_with_its_file_and_key(project, line, message):
    path = written(project, f"[tool.batchnorm.doctor]\n{line}\n")
    with pytest.raises(ArgumentError, match=message) as caught:
        find(project)
    assert str(caught.value).startswith(f"{path}: [tool.batchnorm.doctor] ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[tool.batchnorm.docter]\nselect = ['BN001']\n", r"\[tool\.batchnorm\] has no key 'docter'"),
        ("[tool]\nbatchnorm = 3\n", r"tool\.batchnorm is no table"),
        ("[tool.batchnorm]\ndoctor = true\n", r"tool\.batchnorm\.doctor is no table"),
        ("[tool.batchnorm.doctor\n", r"cannot be read: "),
    ],
)
def test_a_table_that_is_none(project, text, message):
    path = written(project, text)
    with pytest.raises(ArgumentError, match=message) as caught:
        find(project)
    assert str(caught.value).startswith(str(path))


def test_the_command_line_wins():
    file = Configuration(path=Path("a"), select=("BN001",), fail_on="error", max_batches=4, target="a:b", loss="c:d")
    given = Configuration(select=("BN011",), max_batches=2)
    merged = given.over(file)
    assert (merged.select, merged.fail_on, merged.max_batches, merged.loss) == (("BN011",), "error", 2, "c:d")
    assert (merged.path, merged.target) == (Path("a"), "a:b")


def test_nothing_said_on_the_command_line_is_said():
    file = Configuration(select=("BN001",), ignore=("BN004",), per_layer_ignores={"a": ("BN001",)})
    merged = Configuration(select=(), ignore=()).over(file)
    assert (merged.select, merged.ignore, merged.per_layer_ignores) == ((), (), {"a": ("BN001",)})


def test_rules_may_be_ignored_nowhere(project):
    settings = read(written(project, "[tool.batchnorm.doctor]\nignore = []\nper-layer-ignores = {'a.*' = []}\n"))
    assert (settings.ignore, settings.per_layer_ignores) == ((), {"a.*": ()})


def test_a_checkpoint_lies_beside_the_table(project, monkeypatch):
    written(project, "[tool.batchnorm.doctor]\ntarget = 'runs/best.pt'\n")
    monkeypatch.chdir(project)
    assert find(Path.cwd()).target == "runs/best.pt"
    monkeypatch.chdir(project / "package" / "deeper")
    assert Path(find(Path.cwd()).target) == Path("../../runs/best.pt")
    assert Path(read(Path("../../pyproject.toml")).target) == Path("../../runs/best.pt")


def test_what_belongs_to_another_target_is_not_taken():
    file = Configuration(target="a:b", batches="a:c", loss="a:d", optimizer="a:e", forward="a:f", before="a:g")
    merged = Configuration(target="model.pt", loss="x:y").over(file)
    assert merged == Configuration(target="model.pt", loss="x:y")
    assert Configuration(target="a:b", loss="x:y").over(file) == replace(file, loss="x:y")


def test_python_without_a_reader_of_toml(project, monkeypatch):
    path = written(project, FULL)
    monkeypatch.setattr(configuration.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ArgumentError, match=r"Python before 3\.11 has no reader of TOML\. Mend: pip install tomli"):
        read(path)


def test_tomli_serves_where_python_has_no_tomllib(project, monkeypatch):
    import tomllib

    path = written(project, FULL)
    monkeypatch.setitem(sys.modules, "tomli", tomllib)
    monkeypatch.setattr(configuration.importlib.util, "find_spec", lambda name: None if name == "tomllib" else True)
    assert read(path).fail_on == "error"
