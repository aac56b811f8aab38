"""Two studies side by side."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from batchnorm.cli.app import app
from batchnorm.study import Conclusion, Effect, Outcome, Verdict, registered
from batchnorm.study.results import kept
from batchnorm.study.results.compare import Comparison, Pair, compare
from batchnorm.study.results.compare_page import apart, compare_page, overlap, verdicts
from batchnorm.study.statistics import Interval, interval
from study.kept_studies import folder

BEFORE, AFTER = [1.0, 2.0, 3.0, 2.5, 1.5], [3.0, 5.0, 4.0, 3.5, 4.5]


def _outcome(name: str, verdict: Verdict, *effects: Effect) -> Outcome:
    return Outcome(registered()[name], [], Conclusion(verdict, f"why of {name}", effects))


def _studies(tmp_path: Path) -> tuple[Path, Path]:
    same = Effect("Accuracy", interval(BEFORE), "points")
    first = [
        _outcome("convergence", Verdict.REPRODUCED, same),
        _outcome("placement", Verdict.REPRODUCED, same, Effect("gone", interval(BEFORE))),
        _outcome("saturation", Verdict.INCONCLUSIVE, same),
    ]
    second = [
        _outcome("convergence", Verdict.REPRODUCED, Effect("Accuracy", interval(AFTER), "points")),
        _outcome("placement", Verdict.NOT_REPRODUCED, same),
        _outcome("eps-placement", Verdict.REPRODUCED),
    ]
    second[0] = replace(second[0], claim=replace(second[0].claim, steps=7))
    a = folder(tmp_path / "a", first)
    return a, folder(tmp_path / "b", second, seeds=[0, 1], versions={"batchnorm": "0", "torch": "2"}, workers=9)


def _compared(tmp_path: Path) -> Comparison:
    first, second = _studies(tmp_path)
    return compare(kept.read(first), kept.read(second))


def test_claims_in_both_come_with_those_first_whose_verdict_changed(tmp_path: Path) -> None:
    comparison = _compared(tmp_path)
    assert [(change.first.id, change.changed) for change in comparison.changes] == [
        ("placement", True),
        ("convergence", False),
    ]
    assert verdicts(comparison.changes[0]) == "reproduced → not reproduced"
    assert [[claim.id for claim in claims] for claims in comparison.only] == [["saturation"], ["eps-placement"]]
    assert comparison.changes[0].only == (["gone"], [])


def test_what_was_not_the_same_is_listed_and_what_changes_no_number_is_not(tmp_path: Path) -> None:
    comparison = _compared(tmp_path)
    steps = str(registered()["convergence"].steps)
    assert list(comparison.circumstances) == [
        ("versions: torch", "1", "2"),
        ("seeds", "0, 1, 2, 3, 4", "0, 1"),
        ("convergence: steps", steps, "7"),
    ]


IMAGES = {"samples": 5000, "image_size": [28, 28], "fingerprint": "0123456789abcdef"}


@pytest.mark.parametrize(
    ("other", "row"),
    [
        ({"samples": 600}, ("images a seed, at most", "5000", "600")),
        ({"image_size": [32, 32]}, ("height and width of the images", "28, 28", "32, 32")),
        ({"fingerprint": "f" * 64}, ("images", "fingerprint 0123456789ab", f"fingerprint {'f' * 12}")),
    ],
)
def test_other_images_under_the_same_name_are_told(tmp_path: Path, other: dict, row: tuple) -> None:
    outcomes = [_outcome("placement", Verdict.REPRODUCED)]
    first = folder(tmp_path / "a", outcomes, **IMAGES)
    second = folder(tmp_path / "b", outcomes, **{**IMAGES, **other})
    assert list(compare(kept.read(first), kept.read(second)).circumstances) == [row]


def test_images_are_called_the_same_only_where_both_studies_tell(tmp_path: Path) -> None:
    outcomes = [_outcome("placement", Verdict.REPRODUCED)]
    study = kept.read(folder(tmp_path / "a", outcomes, **IMAGES))
    assert "the same versions, processor, seeds, images and settings." in compare_page(compare(study, study))
    older = {name: value for name, value in study.environment.items() if name not in IMAGES}
    text = compare_page(compare(study, replace(study, environment=older)))
    assert "the same versions, processor, seeds and settings." in text
    assert "whether the images are the same is not known" in text


def test_verdicts_that_all_stayed_are_no_warning(tmp_path: Path) -> None:
    study = kept.read(folder(tmp_path / "a", [_outcome("placement", Verdict.REPRODUCED)]))
    assert '<span class=""><b>0</b> verdicts changed</span>' in compare_page(compare(study, study))


@pytest.mark.parametrize("settings", ["", "a\0", "(" * 5000, "-" * 100_000 + "1", "Placement(steps=7)"])
def test_settings_that_cannot_be_read_are_compared_as_a_whole(tmp_path: Path, settings: str) -> None:
    path = folder(tmp_path / "a", [_outcome("placement", Verdict.REPRODUCED)])
    study = kept.read(path)
    damaged = replace(study, claims={"placement": replace(study.claims["placement"], settings=settings)})
    assert compare(study, damaged).circumstances


def test_studies_without_a_common_claim_say_so(tmp_path: Path) -> None:
    first, second = (
        folder(tmp_path / name, [_outcome(name, Verdict.REPRODUCED)]) for name in ("placement", "saturation")
    )
    code, out, _ = _call("--compare", str(first), str(second), "--out", str(tmp_path / "out"))
    assert code == 0
    assert "no claim is in both" in out
    assert "B against A" not in out
    text = (tmp_path / "out" / "compare.html").read_text("utf-8")
    assert "The two studies have no claim in common." in text
    assert "changed</span>" not in text


def test_an_effect_that_is_none_is_a_dash(tmp_path: Path) -> None:
    pair = Pair(Effect("e", Interval(math.nan, -math.inf, math.inf, 5), "×"), Effect("e", Interval(1, 0, 2, 5), "×"))
    assert overlap(pair) == "–"
    outcomes = [_outcome("placement", Verdict.INCONCLUSIVE, pair.first)]
    study = kept.read(folder(tmp_path / "a", outcomes))
    assert "no number" not in compare_page(compare(study, study))


def test_the_standard_error_of_a_difference_is_that_of_two_independent_means() -> None:
    def squared(values: list[float]) -> float:
        mean = sum(values) / 5
        return sum((value - mean) ** 2 for value in values) / 4 / 5

    pair = Pair(Effect("e", interval(BEFORE)), Effect("e", interval(AFTER)))
    assert pair.apart == pytest.approx((2.0, math.sqrt(squared(BEFORE) + squared(AFTER))))
    assert not Pair(Effect("e", Interval(1, 0, 2, 5)), Effect("e", Interval(4, 3, 5, 5))).overlap
    assert Pair(Effect("e", Interval(1, 0, 3, 5)), Effect("e", Interval(4, 3, 5, 5))).overlap
    # Of ratios the logarithms are compared.
    ratios = Pair(*(Effect("e", interval(values).exponential(), "×", ratio=True) for values in (BEFORE, AFTER)))
    assert ratios.apart == pytest.approx(pair.apart)
    assert apart(ratios).startswith(f"{math.exp(2):.2f}× (standard error of its logarithm ")


@pytest.mark.parametrize(
    "span",
    [Interval(1, -math.inf, math.inf, 1), Interval(1, 0.5, 3, 5), Interval(math.nan, 0, 1, 5), Interval(1, 0, 2, 1)],
)
def test_an_interval_that_does_not_tell_its_error_gives_no_difference(span: Interval) -> None:
    pair = Pair(Effect("e", span), Effect("e", Interval(1, 0, 2, 5)))
    assert pair.apart is None
    assert apart(pair) == "not told by these intervals"
    unlike = Pair(Effect("e", Interval(1, 0, 2, 5), "%"), Effect("e", Interval(1, 0, 2, 5), "points"))
    assert unlike.apart is None


def test_the_page_has_the_changes_the_effects_and_the_circumstances(tmp_path: Path) -> None:
    text = compare_page(_compared(tmp_path))
    assert "Plotly" not in text.replace("Plotly.react", "")
    places = [text.index(word) for word in ("<b>1</b> verdict changed", "reproduced → not reproduced", "B against A")]
    assert places == sorted(places)
    for word in ("2 points (standard error 0.5)", "do not overlap", "why of placement", "Only in B", "versions: torch"):
        assert word in text


def _call(*arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["study", *arguments])
    return done.exit_code, done.stdout, done.stderr


def test_the_command_compares_folders_and_files_and_leaves_the_page(tmp_path: Path) -> None:
    first, second = _studies(tmp_path)
    code, out, _ = _call("--compare", str(first), str(second / "results.json"), "--out", str(tmp_path / "out"))
    assert code == 0
    rows = [line.split() for line in out.splitlines() if line]
    assert [row[0] for row in rows[3:5]] == ["placement", "convergence"]
    assert "only in A: saturation" in out
    assert f"page: {tmp_path / 'out' / 'compare.html'}" in out
    assert (tmp_path / "out" / "compare.html").exists()


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    first, second = _studies(tmp_path)
    code, out, err = _call("--compare", str(first), str(tmp_path / "none"), "--out", str(tmp_path / "out"))
    assert (code, out) == (2, "")
    assert "Mend: name the folder of a finished study, or its results.json" in err
    code, _, err = _call("placement", "--compare", str(first), str(second), "--out", str(tmp_path / "out"))
    assert code == 2
    assert "leave out placement" in err
    assert not (tmp_path / "out").exists()
    (second / "results.json").write_text(json.dumps({"rows": []}), "utf-8")
    assert _call("--compare", str(first), str(second))[0] == 2
