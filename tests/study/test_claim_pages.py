"""The documentation's pages of the claims are what their files and the last full run say."""

import importlib.util
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from batchnorm.study import StudyError, registered
from batchnorm.study.data import default, load
from batchnorm.study.results import kept
from study.kept_studies import CLAIM, folder, run

FOLDER = Path(__file__).parents[2] / "docs" / "claims"
REMAKE = "run `python docs/claims/pages.py`"


def _script(folder: Path = FOLDER) -> ModuleType:
    spec = importlib.util.spec_from_file_location("claim_pages", folder / "pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPT = _script()
PAGES = SCRIPT.pages()


def test_there_is_a_page_a_claim_and_the_table_and_nothing_else() -> None:
    assert {path.name for path in FOLDER.glob("*.md")} == {"README.md", *(f"{name}.md" for name in registered())}


@pytest.mark.parametrize("name", PAGES)
def test_the_committed_page_is_what_the_claims_file_says(name: str) -> None:
    assert (FOLDER / name).read_text(encoding="utf-8") == PAGES[name], REMAKE


@pytest.mark.parametrize("name", PAGES)
def test_links_and_pictures_lead_somewhere(name: str) -> None:
    for link in re.findall(r"(?<!\\)\]\(([^)#]+)(?:#[^)]*)?\)", PAGES[name]):
        assert link.startswith("https://") or (FOLDER / link).exists(), link


def test_there_are_no_pictures_but_those_that_are_shown() -> None:
    shown = {link for page in PAGES.values() for link in re.findall(r"\]\(([^)]+\.svg)\)", page)}
    assert {path.name for path in FOLDER.glob("*.svg")} == shown


def test_the_story_has_the_verdicts_of_the_last_full_run() -> None:
    text = SCRIPT.STORY.read_text(encoding="utf-8")
    # Every claim is told once.
    assert sorted(mark[2] for mark in SCRIPT.MARKED.finditer(text)) == sorted(registered())
    assert SCRIPT.story(text, SCRIPT.last()) == text, REMAKE


def test_a_mark_that_names_no_claim_is_refused() -> None:
    with pytest.raises(ValueError, match="names nothing, which is no claim"):
        SCRIPT.story("<!-- verdict: nothing -->\n<!-- /verdict -->", None)


def test_a_claim_that_was_not_run_in_full_says_so() -> None:
    claim = registered()[CLAIM]
    page = SCRIPT.page(claim, None)
    assert "**not run in full yet**" in page
    assert "It has not been run in full." in page
    for words in (claim.about.statement, claim.about.pass_rule, claim.about.control, claim.about.source):
        assert SCRIPT.text(words) in page
    assert f"$$\n{claim.about.formula}\n$$" in page
    assert "not run in full yet." in SCRIPT.story(f"<!-- verdict: {CLAIM} -->\n<!-- /verdict -->", None)


def test_markdown_shows_text_as_it_stands() -> None:
    assert (
        SCRIPT.text("a|b <c> *d* $e$ [f] `g` h_i _j_ \\") == r"a\|b &lt;c> \*d\* \$e\$ \[f\] \`g\` h_i \_j\_ " + "\\\\"
    )


def _full() -> kept.KeptStudy:
    images = load(default())
    stated = {"tier": "full", "seeds": [0, 1, 2, 3, 4], "control": False, "model": None, "data": images.description}
    stated |= {"samples": len(images.y), "fingerprint": images.fingerprint}
    claims = {name: {"runs": [{"data": None}, {"data": str(default())}]} for name in registered()}
    return kept.KeptStudy(Path("results.json"), stated, claims, {"claims": claims})


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({}, None),
        ({"tier": "standard"}, "its tier is standard"),
        ({"seeds": [0, 1]}, "it has 2 of at least 5 seeds"),
        ({"seeds": [5, 6, 7, 8, 9]}, "not the first ones"),
        ({"control": True}, "the effect is taken away"),
        ({"model": "my:network"}, "it is of the network my:network"),
        ({"data": "others"}, "its images are others"),
        ({"samples": 100}, "its samples is 100"),
        ({"fingerprint": "0"}, "its fingerprint is 0"),
    ],
)
def test_only_a_full_run_is_the_last_full_run(other: dict, said: str | None) -> None:
    study = _full()
    reasons = SCRIPT.unfit(replace(study, environment={**study.environment, **other}))
    assert len(reasons) == (said is not None)
    assert said is None or said in reasons[0]


def test_a_study_of_some_claims_or_other_images_is_no_full_run() -> None:
    study = _full()
    claims = {name: claim for name, claim in study.claims.items() if name != CLAIM}
    assert SCRIPT.unfit(replace(study, claims=claims)) == [f"it lacks {CLAIM}"]
    claims = {**study.claims, CLAIM: {"runs": [{"data": "folder"}]}}
    assert SCRIPT.unfit(replace(study, plain={"claims": claims})) == ["it ran on folder"]
    # A study of before did not state all of them.
    older = {name: value for name, value in study.environment.items() if name not in ("samples", "fingerprint")}
    assert SCRIPT.unfit(replace(study, environment=older)) == []


def test_what_is_no_full_run_is_not_taken(tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in FOLDER.iterdir() if path.is_file()}
    with pytest.raises(StudyError, match="is no full run: its tier is quick"):
        SCRIPT.remake(folder(tmp_path, run(), tier="quick"))
    assert {path.name: path.read_bytes() for path in FOLDER.iterdir() if path.is_file()} == before


def test_a_finished_study_is_taken_whole_and_the_same_each_time(tmp_path: Path) -> None:
    (outcome,) = outcomes = run()
    study = folder(tmp_path / "study", outcomes, tier="quick")
    docs = tmp_path / "docs"
    (docs / "claims").mkdir(parents=True)
    shutil.copy(FOLDER / "pages.py", docs / "claims")
    (docs / "claims" / "old.md").touch()
    (docs / "claims" / "old-1.svg").touch()
    story = docs / "what-batch-norm-does.md"
    story.write_text(f"Words.\n\n<!-- verdict: {CLAIM} -->\nold\n<!-- /verdict -->\n\nMore.\n", "utf-8")
    script = _script(docs / "claims")
    script.unfit = lambda study: []
    script.remake(study)
    made = {path.name: path.read_bytes() for path in (docs / "claims").iterdir() if path.is_file()}
    assert {"old.md", "old-1.svg"}.isdisjoint(made)
    assert {name for name in made if name.endswith(".svg")} == {f"{CLAIM}-1.svg", f"{CLAIM}-2.svg"}
    page = made[f"{CLAIM}.md"].decode()
    conclusion = outcome.conclusion
    assert f"`{CLAIM}`: **{conclusion.verdict.value}**" in page
    for words in (conclusion.reason, *map(str, conclusion.effects), *conclusion.findings):
        assert SCRIPT.text(words) in page
    assert f"![{SCRIPT.text(conclusion.charts[0].title)}]({CLAIM}-1.svg)" in page
    assert "other settings" not in page
    row = next(line for line in made["README.md"].decode().splitlines() if f"]({CLAIM}.md)" in line)
    assert made["README.md"].decode().count("python docs/claims/pages.py") == 1
    assert row.count("|") - row.count(r"\|") == 5
    assert SCRIPT.text(outcome.effect[0]) in row
    box = story.read_text("utf-8")
    assert box.startswith(f"Words.\n\n<!-- verdict: {CLAIM} -->\n> **[")
    assert f"]({'claims/' + CLAIM}.md)**: {conclusion.verdict.value}." in box
    assert box.endswith("<!-- /verdict -->\n\nMore.\n")
    assert "old" not in box
    # What is committed has no values of runs, and is read as a study all the same.
    taken = kept.read(docs / "claims" / "results.json")
    assert "runs" not in taken.plain["claims"][CLAIM]
    assert taken.claims[CLAIM].verdict is conclusion.verdict
    script.remake(study)
    script.remake()
    assert {path.name: path.read_bytes() for path in (docs / "claims").iterdir() if path.is_file()} == made
