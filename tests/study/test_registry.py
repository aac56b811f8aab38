import pickle
import subprocess
import sys

import pytest

from batchnorm.study import Claim, StudyError, registered, select


def test_claims_are_found_and_chosen_by_name() -> None:
    assert {"convergence", "gradient-explosion", "population-variance"} <= set(registered())
    assert [claim.about.id for claim in select(["population-variance", "convergence", "convergence"])] == [
        "population-variance",
        "convergence",
    ]
    assert select([]) == list(registered().values())


def test_an_unknown_claim_lists_those_that_are_known() -> None:
    with pytest.raises(StudyError, match=r"unknown claim: nope\. Known claims: convergence, gradient-explosion"):
        select(["convergence", "nope"])


@pytest.mark.parametrize("claim", registered().values(), ids=registered().keys())
def test_a_claim_declares_itself_and_crosses_processes(claim: Claim) -> None:
    assert all((claim.about.statement, claim.about.source, claim.about.metric, claim.about.direction))
    for verdict in ("Reproduced", "Not reproduced", "inconclusive"):
        assert verdict in claim.about.pass_rule
    assert pickle.loads(pickle.dumps(claim)) == claim
    plan = claim.plan(range(5), "digits")
    assert len(set(plan)) == len(plan)
    assert {run.seed for run in plan} == set(range(5))
    assert {run.claim for run in plan} == {claim.about.id}


def test_the_library_does_not_import_the_study_or_its_tools() -> None:
    code = (
        "import sys, batchnorm; "
        "bad = [m for m in sys.modules if m.split('.')[0] in ('typer', 'rich', 'plotly', 'mlxtend', 'scipy') "
        "or m.startswith(('batchnorm.study', 'batchnorm.report', 'batchnorm.cli'))]; print(bad)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
