"""The page of a study: what stands on it, and in which order."""

import math
import re
from dataclasses import replace
from html import escape, unescape

import pytest
from plotly.offline import get_plotlyjs

from batchnorm.report import Curves, Section, Series
from batchnorm.report.formula import mathml
from batchnorm.study import Own, SubjectClaim, Topic, registered
from batchnorm.study.claim import Conclusion, Effect, Result, Run, Verdict
from batchnorm.study.data import Source
from batchnorm.study.engine import Outcome
from batchnorm.study.environment import Environment, counted
from batchnorm.study.results.output import page
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


def test_the_overview_comes_first_then_the_layer_then_the_claims() -> None:
    text = _text(Section("The layer itself", "layer", blocks=("what it does",)))
    claims = [f'<section id="{outcome.claim.id}"' for outcome in _outcomes()]
    start = ("<h1>", '<section id="overview"', '<section id="reading"', '<section id="layer"')
    _in_order(text, *start, *claims, '<section id="environment"')
    assert '<section id="layer"' not in _text()


def _overview(text: str) -> str:
    return text.split('<section id="overview"')[1].split("</section>", maxsplit=1)[0]


def test_the_overview_counts_the_verdicts_and_shows_the_first_headline_alone() -> None:
    overview = _overview(_text())
    counts = re.findall(r'<span class="(\w*)"><b>(\d+)</b> (.*?)</span>', overview)
    assert counts == [("good", "1", "reproduced"), ("bad", "1", "not reproduced"), ("open", "1", "inconclusive")]
    _in_order(overview, "Batch normalization is", 'class="counts"', 'class="lines"', "The headline picture 1")
    assert "The headline picture 2" not in overview
    for place, outcome in enumerate(_outcomes()):
        title = re.escape(escape(outcome.claim.about.title))
        line = re.findall(rf'<li><p class="to"><a href="#{outcome.claim.id}">{title}</a>.*?</li>', overview)
        assert len(line) == 1
        assert f">{outcome.conclusion.verdict.value}</span>" in line[0]
        assert f'effect {place}: <b>1.500</b> <span class="rest">(95% interval 1.250 to 1.750)</span>' in line[0]
        assert '<div class="sketch"' in line[0]
    # The verdicts are told once.
    assert "<table" not in overview


def test_the_overview_has_a_heading_for_what_claims_are_about_in_the_order_of_the_story() -> None:
    conclusion = _outcomes()[0].conclusion
    every = [Outcome(claim, [], conclusion) for claim in registered().values()]
    overview = _overview(page(every, ENVIRONMENT).replace(get_plotlyjs(), ""))
    headings = ["What batch norm does", "What is contested", "What hurts"]
    assert re.findall(r'<h3 id="\w+">(.*?)</h3>', overview) == headings
    for topic, group in zip(Topic, overview.split('<div class="lines">')[1:], strict=True):
        own = [claim.id for claim in registered().values() if claim.about.topic is topic]
        assert re.findall(r'<a href="#(.*?)">', group) == own
    alone = _overview(page(every[:1], ENVIRONMENT).replace(get_plotlyjs(), ""))
    assert re.findall(r'<h3 id="\w+">(.*?)</h3>', alone) == headings[:1]
    assert re.findall(r"<b>(\d+)</b> (.*?)<", alone) == [("1", "reproduced")]


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
        _in_order(section, *words, about.control[1:], about.paper or "No number", about.source, "#overview")


def test_a_column_without_notes_is_left_out() -> None:
    assert [part.count(">note</th>") for part in _text().split("<section id=")[3:6]] == [1, 0, 0]


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
        text, "The same rules with the effect taken away", "Now none should be reproduced", '<section id="overview"'
    )
    assert "--control" in text
    assert "effect taken away" not in _text()
    assert "--control" not in _text()


def test_the_command_that_repeats_a_whole_tier_names_no_claims() -> None:
    assert "python -m batchnorm study --tier quick --seeds 5" in _text(Section("The layer itself", "layer"))
    names = " ".join(outcome.claim.id for outcome in _outcomes())
    assert f"python -m batchnorm study {names} --seeds 5" in _text()
    full = page(_outcomes(), replace(ENVIRONMENT, tier="full"), Section("The layer", "layer"))
    assert "python -m batchnorm study --tier full --seeds 5" in full
    # A claim may be larger in a dearer tier.
    assert f"python -m batchnorm study {names} --tier full --seeds 5" in page(
        _outcomes(), replace(ENVIRONMENT, tier="full")
    )


def test_the_network_is_told_and_the_users_own_is_named_first() -> None:
    conclusion = _outcomes()[0].conclusion
    claim = next(claim for claim in registered().values() if isinstance(claim, SubjectClaim))
    text = unescape(page([Outcome(claim, [], conclusion)], ENVIRONMENT).replace(get_plotlyjs(), ""))
    assert f"<dt>network</dt><dd>{claim.subject.description}</dd>" in text
    assert "your" not in text.split("<section")[0].split("<h1>")[1]
    outcome = Outcome(claim.on(Own("my.module:network")), [], conclusion)
    environment = replace(ENVIRONMENT, model="my.module:network", tier="standard")
    text = unescape(page([outcome], environment).replace(get_plotlyjs(), ""))
    _in_order(text, "in your network, measured", "On your own network, my.module:network.", '<section id="overview"')
    assert "<dt>network</dt><dd>your own, my.module:network</dd>" in text
    # With a model, the middle tier is the usual one.
    assert f"study {claim.id} --seeds 5 --model my.module:network</code>" in text
    dearer = unescape(page([outcome], replace(environment, tier="full")))
    assert f"study {claim.id} --tier full --seeds 5 --model my.module:network</code>" in dearer
    assert "<dt>network</dt>" not in page([Outcome(registered()["eps-placement"], [], conclusion)], ENVIRONMENT)


def test_a_conclusion_may_be_put_shortly_or_have_no_effect_at_all() -> None:
    short, bare, _ = _outcomes()
    short = replace(short, conclusion=replace(short.conclusion, short=("3 of 5 hold", "refuted: the last")))
    bare = replace(bare, conclusion=replace(bare.conclusion, effects=[]))
    text = page([short, bare], ENVIRONMENT).replace(get_plotlyjs(), "")
    overview = _overview(text)
    assert '<b>3 of 5 hold:</b> <span class="rest">refuted: the last</span>' in overview
    assert "effect 0" not in overview
    assert "reason 1: <b>none</b>" in overview
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
    assert "Nothing guarantees how the other comes out" in page(outcomes, ENVIRONMENT)
    for number, words in ((1, "It is a calculation: an identity"), (2, "Each is a calculation: an identity")):
        text = page(outcomes[1 : 1 + number], ENVIRONMENT)
        assert words in text
        assert "Nothing guarantees" not in text
    assert "calculation: an identity" not in page(outcomes[:1], ENVIRONMENT).replace(get_plotlyjs(), "")


def test_an_effect_that_is_none_is_a_dash() -> None:
    outcome = _outcomes()[0]
    effects = [Effect("speed", Interval(math.nan, -math.inf, math.inf, 5), "×", ratio=True)]
    text = page([replace(outcome, conclusion=replace(outcome.conclusion, effects=effects))], ENVIRONMENT)
    assert "no number" not in text.replace(get_plotlyjs(), "")
    assert "speed: <b>–</b>" in text
    assert ">–</span></td>" in text


def test_one_of_a_thing_is_told_as_one() -> None:
    rows = dict(replace(ENVIRONMENT, workers=1, nodes=1, ray="2", runs=1, kept=1).rows())
    assert rows["processor"] == "a processor (1 worker process, one thread each, on 1 node by Ray 2)"
    assert rows["wall time"] == "9 s, 1 of 1 run kept"
    assert (counted(0, "run"), counted(1641, "run")) == ("0 runs", "1,641 runs")
    assert "1 run, 2 s of one processor core" in _text()
