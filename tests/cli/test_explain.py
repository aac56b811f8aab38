import re

import pytest
from typer.testing import CliRunner

import batchnorm
from batchnorm.cli import explain
from batchnorm.cli.app import app
from batchnorm.doctor.registry import registered
from batchnorm.study.registry import registered as claims


def run(*arguments: str):
    return CliRunner().invoke(app, ["explain", *arguments])


@pytest.mark.parametrize("rule", registered().values(), ids=lambda rule: rule.code)
def test_a_rule_by_its_code_and_its_name(rule):
    for name in (rule.code, rule.code.lower(), rule.name):
        done = run(name)
        assert (done.exit_code, done.stdout) == (0, rule.page)


@pytest.mark.parametrize("claim", claims().values(), ids=lambda claim: claim.id)
def test_a_claim(claim):
    done = run(claim.id)
    assert done.exit_code == 0
    about = claim.about
    assert done.stdout.startswith(f"# {claim.id}: {about.title}\n\n{about.statement}\n\n## Formula\n")
    for text in (about.formula, about.source, about.setup, about.metric, about.direction, about.pass_rule):
        assert text in done.stdout
    assert "None" not in done.stdout.replace(about.control, "")


def test_backends():
    done = run("backends")
    assert (done.exit_code, done.stdout.splitlines()) == (0, [str(each) for each in batchnorm.backends()])


def test_a_list_of_all():
    done = run()
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert len(lines) == len(registered()) + len(claims()) + 1
    assert lines[0].startswith("BN0")
    assert any(re.match(r"claim +scale-invariance +\S", line) for line in lines)


@pytest.mark.parametrize(
    ("name", "near"),
    [("BN11", "BN011"), ("inverted-momentun", "inverted-momentum"), ("scale-invarianz", "scale-invariance")],
)
def test_unknown_names_list_what_is_near(name, near):
    done = run(name)
    assert (done.exit_code, done.stdout) == (2, "")
    assert f"{name!r} is neither a rule nor a claim. Mend: did you mean" in done.stderr
    assert near in done.stderr


def test_a_name_like_no_other():
    done = run("xyzzy")
    assert done.exit_code == 2
    assert done.stderr.endswith("Mend: batchnorm explain lists all.\n")


def test_without_the_studys_packages_rules_are_explained(monkeypatch):
    monkeypatch.setattr(explain, "missing_tools", lambda *names: "no scipy")
    assert run("BN011").exit_code == 0
    done = run("placement")
    assert done.exit_code == 2
    assert "scipy is not installed" in done.stderr
    assert "claim" not in run().stdout


def test_on_a_terminal_it_is_laid_out(monkeypatch):
    from rich.console import Console

    monkeypatch.setattr(Console, "is_terminal", property(lambda self: True))
    laid_out = run("BN011").stdout
    assert "inverted-momentum" in laid_out
    assert "## What it does" not in laid_out
