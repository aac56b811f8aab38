"""The page of a study: what stands on it, and in which order."""

import re
from dataclasses import replace
from html import unescape

import pytest
from plotly.offline import get_plotlyjs

from batchnorm.report import Curves, Section, Series
from batchnorm.report.formula import mathml
from batchnorm.study import registered
from batchnorm.study.claim import Conclusion, Effect, Result, Run, Verdict
from batchnorm.study.data import Source
from batchnorm.study.engine import Outcome
from batchnorm.study.environment import Environment
from batchnorm.study.output import page
from batchnorm.study.statistics import Interval

PICTURE = Curves("The headline picture", "steps", "accuracy (%)", [Series("with", [0, 1], [0, 1], 1)])
CHART = Curves("The chart of the claim", "steps", "accuracy (%)", [Series("with", [0, 1], [0, 1], 1)])
ENVIRONMENT = Environment({"batchnorm": "0"}, "a processor", 2, "today", [0, 1, 2, 3, 4], "some images", 9.0)


def _outcomes() -> list[Outcome]:
    found = []
    for place, (claim, verdict) in enumerate(zip(registered().values(), Verdict, strict=False)):
        note = "a note" if place == 0 else ""
        effects = [Effect(f"effect {place}", Interval(1.5, 1.25, 1.75, 5), note=note)]
        conclusion = Conclusion(verdict, f"reason {place}", effects, [CHART], [f"finding {place}"])
        if place:
            conclusion = replace(conclusion, headline=replace(PICTURE, title=f"{PICTURE.title} {place}"))
        found.append(Outcome(claim, [Result(Run(claim.id, "arm", 0, None), {}, 2.0)], conclusion))
    return found


def _text(explanation: Section | None = None) -> str:
    return page(_outcomes(), ENVIRONMENT, explanation).replace(get_plotlyjs(), "")


def _in_order(text: str, *words: str) -> None:
    places = [text.index(word) for word in words]
    assert places == sorted(places), words


def test_the_summary_comes_first_then_the_layer_then_the_claims() -> None:
    text = _text(Section("The layer itself", "layer", blocks=("what it does",)))
    claims = [f'<section id="{outcome.claim.id}"' for outcome in _outcomes()]
    _in_order(text, "<h1>", '<section id="summary"', '<section id="layer"', *claims, '<section id="environment"')
    assert '<section id="layer"' not in _text()


def test_the_summary_counts_the_verdicts_and_shows_the_first_headline_alone() -> None:
    summary = _text().split('<section id="summary"')[1].split("</section>")[0]
    assert "Of 3 claims: 1 reproduced, 1 not reproduced and 1 inconclusive." in summary
    _in_order(summary, "Batch normalization is", "Of 3 claims", "<table ", "The headline picture 1")
    assert "The headline picture 2" not in summary
    for outcome in _outcomes():
        assert f'href="#{outcome.claim.id}"' in summary
    assert summary.count("1.500 (95% interval 1.250 to 1.750)") == 3


def test_a_claim_has_all_its_parts_in_order() -> None:
    for outcome in _outcomes():
        about, conclusion = outcome.claim.about, outcome.conclusion
        section = _text().split(f'<section id="{about.id}"')[1].split("</section>")[0]
        section = unescape(section)
        headings = re.findall(r"<h3>(.*?)</h3>", section)
        assert headings == [
            "What was run",
            "What came out",
            f"The verdict: {conclusion.verdict.value}",
            "How it could have come out otherwise",
            "The paper's number",
        ]
        words = (about.statement, "<math", about.setup, CHART.title, conclusion.reason, about.pass_rule)
        _in_order(section, *words, about.control[1:], about.paper or "No number", about.source, "#verdicts")


def test_a_column_without_notes_is_left_out() -> None:
    assert [part.count(">note</th>") for part in _text().split("<section id=")[2:5]] == [1, 0, 0]


def test_how_to_repeat_it_is_a_command() -> None:
    names = " ".join(outcome.claim.id for outcome in _outcomes())
    assert f"<code>python -m batchnorm study {names} --seeds 5</code>" in _text()
    outcome = _outcomes()[0]
    runs = [Result(replace(run.run, data=Source("my images", image_size=16)), run.values) for run in outcome.results]
    text = unescape(page([replace(outcome, results=runs)], ENVIRONMENT).replace(get_plotlyjs(), ""))
    assert f"study {outcome.claim.id} --seeds 5 --data 'my images' --image-size 16</code>" in text


@pytest.mark.parametrize("name", sorted(registered()))
def test_every_claim_has_a_formula_that_can_be_drawn(name: str) -> None:
    assert "<math" in mathml(registered()[name].about.formula)


def test_a_page_without_the_effect_says_so_first() -> None:
    text = page(_outcomes(), replace(ENVIRONMENT, control=True)).replace(get_plotlyjs(), "")
    _in_order(
        text, "The same rules with the effect taken away", "Now none should be reproduced", '<section id="summary"'
    )
    assert "--control" in text
    assert "effect taken away" not in _text()
    assert "--control" not in _text()


def test_the_command_that_repeats_a_whole_tier_names_no_claims() -> None:
    assert "python -m batchnorm study --tier quick --seeds 5" in _text(Section("The layer itself", "layer"))
    names = " ".join(outcome.claim.id for outcome in _outcomes())
    assert f"python -m batchnorm study {names} --seeds 5" in _text()


def test_a_conclusion_may_be_put_shortly_or_have_no_effect_at_all() -> None:
    short, bare, _ = _outcomes()
    short = replace(short, conclusion=replace(short.conclusion, short=("3 of 5 hold", "refuted: the last")))
    bare = replace(bare, conclusion=replace(bare.conclusion, effects=[]))
    text = page([short, bare], ENVIRONMENT).replace(get_plotlyjs(), "")
    summary = text.split('<section id="summary"')[1].split("</section>")[0]
    assert "3 of 5 hold" in summary
    assert "refuted: the last" in summary
    assert "effect 0" not in summary
    assert "none" in summary
    section = text.split(f'<section id="{bare.claim.id}"')[1].split("</section>")[0]
    assert "<table" not in section


def test_the_letters_of_a_formula_are_explained() -> None:
    text = unescape(_text())
    for outcome in _outcomes():
        assert outcome.claim.about.symbols in text
    assert any(outcome.claim.about.symbols for outcome in _outcomes())


def test_calculations_are_told_from_experiments() -> None:
    claims = registered()
    conclusion = _outcomes()[0].conclusion
    outcomes = [Outcome(claims[name], [], conclusion) for name in ("convergence", "scale-invariance", "eps-placement")]
    assert "2 are each a calculation" in page(outcomes, ENVIRONMENT).replace(get_plotlyjs(), "")
    assert "calculation: an identity" not in page(outcomes[:1], ENVIRONMENT).replace(get_plotlyjs(), "")
