import pickle
import subprocess
import sys
from dataclasses import replace

import pytest

from batchnorm.study import Claim, StudyError, registered, registry, select
from batchnorm.study.claim import TIERS
from batchnorm.study.explanation import Explanation
from study.helpers import DIGITS


def test_claims_are_found_and_chosen_by_name() -> None:
    assert {"convergence", "gradient-explosion", "population-variance"} <= set(registered())
    assert [claim.about.id for claim in select(["population-variance", "convergence", "convergence"])] == [
        "population-variance",
        "convergence",
    ]


def test_the_order_is_that_of_a_story_and_knows_every_claim() -> None:
    assert next(iter(registered())) == "convergence"
    assert list(registered()) == list(registry._STORY)


def test_an_unknown_claim_lists_those_that_are_known() -> None:
    with pytest.raises(StudyError, match=r"unknown claim: nope\. Known claims: convergence, "):
        select(["convergence", "nope"])


@pytest.mark.parametrize("claim", registered().values(), ids=registered().keys())
def test_a_claim_declares_itself_and_crosses_processes(claim: Claim) -> None:
    about = claim.about
    assert all((about.statement, about.source, about.metric, about.direction, about.control, about.budget > 0))
    assert about.tier in TIERS
    for verdict in ("Reproduced", "Not reproduced", "inconclusive"):
        assert verdict in claim.about.pass_rule
    assert pickle.loads(pickle.dumps(claim)) == claim
    removed = claim.without_effect()
    assert type(removed) is type(claim)
    assert removed != claim
    assert removed.without_effect() == removed
    plan = claim.plan(range(5), DIGITS if claim.smallest else None)
    assert len(set(plan)) == len(plan)
    assert {run.seed for run in plan} == set(range(5))
    assert {run.claim for run in plan} == {about.id}
    assert {run.data for run in plan} == {DIGITS if claim.smallest else None}


def test_a_tier_holds_the_claims_of_those_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = list(registered().values())
    assert select([], "full") == [claim.at("full") for claim in everything]
    assert select([]) == select([], "quick") == [claim for claim in everything if claim.about.tier == "quick"]
    # One that is small in the quick tier is whole in the others, by its name too.
    small, whole = (select(["dropout-shift"], tier)[0] for tier in ("quick", "standard"))
    assert set(small.plan([0], DIGITS)) < set(whole.plan([0], DIGITS))
    assert small.budget < whole.budget
    costly = type("Costly", (type(everything[0]),), {"about": replace(everything[0].about, tier="standard")})()
    monkeypatch.setattr(registry, "registered", lambda: {"costly": costly})
    assert select([], "quick") == []
    assert select([], "standard") == select([], "full") == select(["costly"], "quick") == [costly]


def test_the_quick_tier_keeps_to_six_minutes_on_two_cores() -> None:
    # By the declared budgets; what they really took is on the page of every study.
    assert sum(claim.budget for claim in select([])) + Explanation().budget <= 2 * 6 * 60


def test_the_library_does_not_import_the_study_or_its_tools() -> None:
    code = (
        "import sys, batchnorm; "
        "bad = [m for m in sys.modules if m.split('.')[0] in ('typer', 'rich', 'plotly', 'mlxtend', 'scipy') "
        "or m.startswith(('batchnorm.study', 'batchnorm.report', 'batchnorm.cli'))]; print(bad)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
