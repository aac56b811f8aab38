"""A finished study read back from its folder."""

import json
import math
from pathlib import Path

import pytest

from batchnorm.study import Outcome, StudyError
from batchnorm.study.results import kept
from batchnorm.study.results.export import FORMAT
from batchnorm.study.statistics import Interval
from study.kept_studies import CLAIM, folder, run


@pytest.fixture(scope="module")
def outcomes() -> list[Outcome]:
    return run()


@pytest.fixture
def study(tmp_path: Path, outcomes: list[Outcome]) -> Path:
    return folder(tmp_path / "study", outcomes)


def _edit(study: Path, change) -> None:
    plain = json.loads((study / "results.json").read_text("utf-8"))
    change(plain)
    (study / "results.json").write_text(json.dumps(plain), "utf-8")


def test_what_was_written_is_read(study: Path, outcomes: list[Outcome]) -> None:
    for path in (study, study / "results.json"):
        read = kept.read(path)
        (claim,) = read.claims.values()
        conclusion = outcomes[0].conclusion
        assert (claim.id, claim.verdict, claim.reason) == (CLAIM, conclusion.verdict, conclusion.reason)
        assert list(claim.effects) == list(conclusion.effects)
        assert claim.short == outcomes[0].effect
        assert read.environment["seeds"] == [0, 1, 2, 3, 4]


def test_the_runs_come_back_to_the_last_bit_with_their_charts(study: Path, outcomes: list[Outcome]) -> None:
    (found,) = kept.outcomes(kept.read(study))
    assert found.claim == outcomes[0].claim
    # NaN differs from itself, and what Python writes of it does not.
    assert repr(found.results) == repr(outcomes[0].results)
    assert [type(value) for value in found.results[0].values.values()] == [
        type(value) for value in outcomes[0].results[0].values.values()
    ]
    assert repr(found.conclusion) == repr(outcomes[0].conclusion)


def test_a_file_of_an_older_format_is_read_as_far_as_it_goes(study: Path) -> None:
    def older(plain: dict) -> None:
        del plain["format"]
        claim = plain["claims"][CLAIM]
        for name in ("topic", "network", "in short"):
            del claim[name]
        for effect in claim["effects"]:
            del effect["ratio"]
        claim["effects"][0] |= {"unit": "×", "low": None, "high": None}
        claim["effects"][1] |= {"unit": "points"}

    _edit(study, older)
    claim = kept.read(study).claims[CLAIM]
    assert claim.effects[0].ratio
    assert not claim.effects[1].ratio
    assert (claim.effects[0].interval.low, claim.effects[0].interval.high) == (-math.inf, math.inf)
    assert isinstance(claim.effects[0].interval, Interval)
    assert claim.network == ""
    assert claim.short[1] == claim.effects[0].name


def test_an_effect_that_is_none_is_a_dash(study: Path) -> None:
    def none(plain: dict) -> None:
        claim = plain["claims"][CLAIM]
        claim["effects"][0] |= {"unit": "×", "estimate": None, "low": None, "high": None}
        claim["in short"] = ["no number× (95% interval −∞ to ∞)", "what"]

    _edit(study, none)
    assert kept.read(study).claims[CLAIM].short == ("–", "what")
    _edit(study, lambda plain: plain["claims"][CLAIM].pop("in short"))
    assert kept.read(study).claims[CLAIM].short[0] == "–"


def _with_effect(seeds: str, estimate: str) -> str:
    effect = f'{{"name": "e", "estimate": {estimate}, "low": 0, "high": 2, "seeds": {seeds}}}'
    claim = f'{{"title": "t", "verdict": "reproduced", "reason": "r", "effects": [{effect}]}}'
    return f'{{"environment": {{}}, "claims": {{"a": {claim}}}}}'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not JSON"),
        ("[]", "holds no study"),
        ('{"claims": {}}', "holds no study"),
        ('{"environment": {}, "claims": {"a": {}}}', "cannot be read as a study (KeyError"),
        ('{"environment": {}, "claims": []}', "cannot be read as a study"),
        ("[" * 100_000, "is nested too deeply"),
        (_with_effect("Infinity", "1"), "cannot be read as a study (OverflowError"),
        (_with_effect("5", "[]"), "cannot be read as a study (TypeError"),
        (f'{{"format": {FORMAT + 1}, "environment": {{}}, "claims": {{}}}}', f"reads up to {FORMAT}. Mend: install"),
    ],
)
def test_what_is_no_study_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "results.json").write_text(text, "utf-8")
    with pytest.raises(StudyError) as error:
        kept.read(tmp_path)
    assert said in str(error.value)
    assert "results.json" in str(error.value)


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="Mend: name the folder of a finished study"):
        kept.read(tmp_path)


def test_runs_are_not_concluded_from_where_the_claim_is_another_by_now(study: Path) -> None:
    _edit(study, lambda plain: plain["claims"][CLAIM].update(settings="ErrorSurface()"))
    with pytest.raises(StudyError, match="ran with other settings"):
        kept.outcomes(kept.read(study))


def test_runs_are_not_concluded_from_where_the_rule_says_something_else(study: Path) -> None:
    _edit(study, lambda plain: plain["claims"][CLAIM].update(reason="another"))
    with pytest.raises(StudyError, match="its rule does not say of these runs"):
        kept.outcomes(kept.read(study))


def test_a_study_without_its_runs_or_its_effect_has_no_charts(study: Path) -> None:
    (study / "runs.csv").rename(study / "elsewhere.csv")
    with pytest.raises(StudyError, match="which holds what JSON cannot"):
        kept.outcomes(kept.read(study))
    (study / "elsewhere.csv").rename(study / "runs.csv")
    _edit(study, lambda plain: plain["claims"][CLAIM].pop("runs"))
    with pytest.raises(StudyError, match="does not hold the runs"):
        kept.outcomes(kept.read(study))
    _edit(study, lambda plain: plain["environment"].update(control=True))
    with pytest.raises(StudyError, match="with the effect taken away"):
        kept.outcomes(kept.read(study))
