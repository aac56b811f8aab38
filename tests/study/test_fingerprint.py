import sys
from dataclasses import replace
from pathlib import Path

import pytest

from batchnorm.study import Claim, Source, fingerprint, registered
from batchnorm.study.fingerprint import ingredients, sources
from study.helpers import DIGITS

CLAIM = registered()["population-variance"]


@pytest.mark.parametrize("claim", registered().values(), ids=registered().keys())
def test_the_code_that_a_run_executes_counts_and_pictures_do_not(claim: Claim) -> None:
    found = set(sources(type(claim).__module__))
    own = {name for name in found if ".study.claims." in name}
    assert type(claim).__module__ in own
    assert "batchnorm.study.claim" in found
    assert not [name for name in found if name.startswith(("batchnorm.report", "batchnorm.cli"))]
    assert "batchnorm.study.engine" not in found


def test_what_is_imported_by_others_counts_too() -> None:
    assert {
        "batchnorm",
        "batchnorm.nn.batchnorm",
        "batchnorm.functional",
        "batchnorm.ops.native",
        "batchnorm.ops.eager",
        "batchnorm.reference.population",
        "batchnorm.study.data.split",
        "batchnorm.study.data.bundled",
        "batchnorm.study.training",
    } <= set(sources("batchnorm.study.claims.population_variance"))


def test_a_changed_file_is_other_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "their_claims"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "claim.py").write_text("def f():\n    from .helper import g\n    return g()\n")
    (package / "helper.py").write_text("def g():\n    return 1\n")
    (package / "unused.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    code = fingerprint._code.__wrapped__
    first = code("their_claims.claim")
    (package / "unused.py").write_text("x = 1\n")
    assert code("their_claims.claim") == first
    (package / "helper.py").write_text("def g():\n    return 2\n")  # imported inside a function
    assert code("their_claims.claim") != first
    sys.modules.pop("their_claims", None)


def test_other_files_of_the_user_count_and_installed_packages_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "their_claim.py").write_text("import json, torch.nn, their_helper\n")
    (tmp_path / "their_helper.py").write_text("from sklearn import datasets\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert {"their_claim", "their_helper"} == {name for name in sources("their_claim") if not name.endswith(".so")}


def test_a_claim_in_a_folder_without_an_init_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "loose_claims").mkdir()
    (tmp_path / "loose_claims" / "own.py").write_text("from loose_claims import other\n")
    (tmp_path / "loose_claims" / "other.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    found = {name for name in sources("loose_claims.own") if not name.endswith(".so")}
    assert found == {"loose_claims.own", "loose_claims.other"}


def test_a_switch_of_the_libraries_is_an_ingredient(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = fingerprint._versions.__wrapped__()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    monkeypatch.setenv("MKL_NUM_THREADS", "7")  # workers set it, so it must not count
    assert fingerprint._versions.__wrapped__() == usual | {"ONEDNN_MAX_CPU_ISA": "SSE41"}


def test_more_samples_than_there_are_images_are_all_of_them() -> None:
    run = CLAIM.plan([0], DIGITS)[0]
    few, all_of_them, more = (
        ingredients(CLAIM, replace(run, data=Source("digits", samples=samples))) for samples in (100, 1797, 6000)
    )
    assert few != all_of_them == more


def test_a_compiled_extension_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    root = tmp_path / "batchnorm"
    root.mkdir()
    (root / "kernels.so").write_bytes(b"\x7fELF")
    monkeypatch.setattr(fingerprint, "_file", lambda name: root / "__init__.py" if name == "batchnorm" else None)
    assert sources("batchnorm.study.claims.convergence") == {"kernels.so": root / "kernels.so"}


def test_the_ingredients_of_a_run_tell_it_from_any_other() -> None:
    run, other = CLAIM.plan([0], DIGITS)
    wanted = ingredients(CLAIM, run)
    assert ingredients(CLAIM, CLAIM.plan([0], DIGITS)[0]) == wanted
    assert ingredients(CLAIM, other) != wanted
    assert ingredients(CLAIM.without_effect(), run)["settings"] != wanted["settings"]
    assert set(wanted["versions"]) >= {"python", "torch", "numpy", "scipy", "scikit-learn", "processor"}  # type: ignore[call-overload]
