"""``docs/trust.md`` is what is measured: every planted mistake is found, and nothing false of a clean model."""

import pytest
import torch
from torch import nn

from batchnorm.doctor import Finding
from doctor import trust
from doctor.plant import Case
from doctor.torch_audit import audit, names


@pytest.mark.slow
def test_the_page_is_what_is_measured(tmp_path_factory: pytest.TempPathFactory):
    measured = trust.measure(tmp_path_factory.getbasetemp())
    same = trust.write(measured)
    assert not measured.missed
    assert not measured.false
    assert same, f"{trust.PAGE.name} was another: it is written anew, look at what changed"


def test_pages_differ_in_times_and_roundings_alone():
    text = "one 1.50 of 3\n<!-- table time -->\n| 8.1 |\n<!-- end -->\n"
    assert trust.agree(text, text.replace("8.1", "9.9 s").replace("1.50", "1.6"))
    assert not trust.agree(text, text.replace("1.50", "2.6"))
    assert not trust.agree(text, text.replace("of 3", "of 4"))
    assert not trust.agree(text, text.replace("1.50", "many"))


def test_a_truth_that_is_none_is_not_shown():
    def shown(momentum: float) -> str | None:
        model = nn.Sequential(nn.BatchNorm1d(2, momentum=momentum))
        case = Case(model, [(torch.randn(8, 2), None)])
        return trust.forgets(case, [Finding("BN011", "", "0", "warning", "", {}, "")])

    assert shown(0.9) == "one batch leaves 10.0% of the means before it"
    assert shown(0.1) is None


def test_what_torch_audit_names():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    remarks = audit(Case(model, torch.randn(4, 4), optimizer=optimizer))
    assert names("BN016", remarks) == ["TA402"]
    assert names("BN016", [each for each in remarks if not each.of_norm]) == []
    assert names("BN003", remarks) == ["TA304"]
    assert names("BN017", remarks) == ["TA400"]
    assert names("BN011", remarks) == []
    assert {each.rule for each in remarks if each.of_norm} == {"TA304", "TA400", "TA402"}
    assert audit(Case(model.state_dict())) == []
