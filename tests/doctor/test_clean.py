"""Clean models: what the doctor says of them is true. (Trained for longer, and shown to be true: ``test_trust.py``.)"""

from dataclasses import replace

import pytest

from batchnorm.doctor.registry import registered
from doctor.clean import CLEAN
from doctor.trust import TRUE


@pytest.mark.parametrize("name", CLEAN)
def test_nothing_is_said_of_a_clean_model_that_is_not_true(name: str):
    diagnosis = replace(CLEAN[name], steps=1).case().diagnose(max_batches=2)
    assert diagnosis.evidence.graph is not None, diagnosis.evidence.graph_failure
    false = [str(finding) for finding in diagnosis.at_least("warning") if (name, finding.rule) not in TRUE]
    assert not false, "\n".join(false)
    needless = {code for network, code in TRUE if network == name} - {each.rule for each in diagnosis.findings}
    assert not needless, f"true of {name}, and not found: {needless}"
    assert {rule.code for rule in diagnosis.rules} | set(diagnosis.skipped) == set(registered())
