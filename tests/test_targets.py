from pathlib import Path

import pytest

from batchnorm.targets import TargetError, also_from, resolve


def test_a_target_is_found_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_own_models.py").write_text("class Net:\n    size = 3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    assert resolve("my_own_models:Net.size") == 3


def test_the_working_directory_goes_before_other_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "my_two_models.py").write_text("where = 'above'\n")
    (tmp_path / "my_one_model.py").write_text("where = 'above'\n")
    (tmp_path / "here" / "my_two_models.py").write_text("where = 'here'\n")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    also_from(tmp_path)
    assert [resolve(f"my_{each}:where") for each in ("two_models", "one_model")] == ["here", "above"]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("no_colon", "not of the form package.module:callable"),
        (":name", "not of the form"),
        ("module:", "not of the form"),
        ("no_such_package.part:x", r"no module no_such_package\. Mend: start it in the folder that holds"),
        ("math:nothing", r"math has no nothing\. Mend: it has acos"),
        ("broken_target:x", "importing broken_target raised ZeroDivisionError"),
        ("leaving_target:x", "importing leaving_target raised SystemExit: 0"),
        ("needy_target:x", "needy_target imports no_such_package, which is not installed"),
    ],
)
def test_what_is_wrong_is_named(target: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_target.py").write_text("1 / 0\n")
    (tmp_path / "leaving_target.py").write_text("raise SystemExit(0)\n")
    (tmp_path / "needy_target.py").write_text("import no_such_package\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    with pytest.raises(TargetError, match=message):
        resolve(target)
