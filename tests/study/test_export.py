import csv
import io
import json
import math
from dataclasses import replace
from pathlib import Path

from batchnorm.study import Conclusion, Effect, Outcome, Result, Run, SubjectClaim, Verdict, registered
from batchnorm.study.data import Source, load
from batchnorm.study.environment import Environment
from batchnorm.study.results.export import FORMAT, effects_table, results, runs_table, write
from batchnorm.study.statistics import Interval, interval
from study.test_engine import Toy

ENVIRONMENT = Environment.now(seeds=[5], data="<digits>", workers=1, seconds=1.0, runs=2, kept=1)


def _outcome(low: float = 1.0) -> Outcome:
    values = {"double": 10.0, "curve": [1 / 3, math.nan], "arm, quoted": 'a "word"', "diverged": False}
    runs = [Result(Run("toy", arm, 5, None), values, 0.5) for arm in ("left", "right")]
    effect = Effect("double", Interval(2.0, low, 3.0, 1), "points", "a note")
    second = Effect("other", interval([0.1, 0.3]), ratio=True)
    return Outcome(Toy(), runs, Conclusion(Verdict.INCONCLUSIVE, "toy", [effect, second], (), ["found"]))


def test_the_folder_holds_the_page_and_the_results_whole(tmp_path: Path) -> None:
    outcomes = [_outcome()]
    path = write(outcomes, ENVIRONMENT, tmp_path / "deep" / "folder")
    stored = json.loads((path.parent / "results.json").read_text("utf-8"))
    assert stored == results(outcomes, ENVIRONMENT)
    assert stored["claims"]["toy"]["verdict"] == "inconclusive"
    assert stored["claims"]["toy"]["runs"][0]["values"]["double"] == 10
    assert stored["environment"]["kept"] == 1
    page = path.read_text("utf-8")
    assert "&lt;b&gt;Toy&lt;/b&gt;" in page
    assert "<b>Toy</b>" not in page
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "effects.csv",
        "index.html",
        "results.json",
        "runs.csv",
    ]


def test_what_is_not_finite_becomes_null_in_json() -> None:
    stored = results([_outcome(-math.inf)], ENVIRONMENT)["claims"]["toy"]
    assert stored["effects"][0]["low"] is None
    assert stored["runs"][0]["values"]["curve"] == [1 / 3, None]


def test_what_a_comparison_needs_is_told() -> None:
    stored = results([_outcome()], ENVIRONMENT)
    assert stored["format"] == FORMAT
    claim = stored["claims"]["toy"]
    assert (claim["topic"], claim["network"]) == (Toy.about.topic.value, None)
    assert claim["in short"] == list(_outcome().effect)
    assert [effect["ratio"] for effect in claim["effects"]] == [False, True]
    own = next(claim for claim in registered().values() if isinstance(claim, SubjectClaim))
    outcome = replace(_outcome(), claim=own)
    assert results([outcome], ENVIRONMENT)["claims"][own.id]["network"] == own.subject.description


def test_the_images_are_told_by_number_size_and_fingerprint() -> None:
    images = load(Source("digits"))
    count = len(images.y)
    for asked, used in ((None, count), (100, 100), (10**6, count)):
        told = Environment.now(seeds=[0], data="d", workers=1, seconds=1.0, images=images, samples=asked).as_json()
        assert (told["samples"], told["image_size"], told["fingerprint"]) == (used, [8, 8], images.fingerprint)
    assert results([], ENVIRONMENT)["environment"]["fingerprint"] is None


def test_the_table_of_runs_has_one_value_a_row() -> None:
    rows = list(csv.DictReader(io.StringIO(runs_table([_outcome()]))))
    assert len(rows) == 10
    left = [(row["metric"], row["index"], row["value"]) for row in rows if row["arm"] == "left"]
    assert left == [
        ("double", "0", "10.0"),
        ("curve", "0", "0.3333333333333333"),
        ("curve", "1", "nan"),
        ("arm, quoted", "0", 'a "word"'),
        ("diverged", "0", "False"),
    ]


def test_the_table_of_runs_does_not_tell_a_slow_study_from_a_fast_one() -> None:
    slow = replace(_outcome(), results=[replace(result, seconds=9.9) for result in _outcome().results])
    assert runs_table([slow]) == runs_table([_outcome()])


def test_the_table_of_effects_has_one_effect_a_row() -> None:
    first, second = csv.DictReader(io.StringIO(effects_table([_outcome()])))
    assert (first["claim"], first["verdict"], first["decisive"]) == ("toy", "inconclusive", "True")
    assert (first["estimate"], first["low"], first["high"], first["unit"]) == ("2.0", "1.0", "3.0", "points")
    assert (second["effect"], second["seeds"], second["decisive"]) == ("other", "2", "False")


def test_runs_of_no_claim_are_told_too() -> None:
    other = Result(Run("explanation", "batch norm", 5, None), {"layer": 2}, 1.0)
    assert results([], ENVIRONMENT, [other])["other runs"][0] | {"seconds": 0} == {
        "of": "explanation",
        "arm": "batch norm",
        "seed": 5,
        "data": None,
        "seconds": 0,
        "values": {"layer": 2},
    }
    assert runs_table([], [other]).splitlines()[1:] == ["explanation,batch norm,5,,layer,0,2"]
