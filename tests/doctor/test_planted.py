"""Every rule on models with its mistake, and on models that only look like it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from batchnorm.doctor.registry import registered
from doctor.plant import Plant, plants

every_plant = pytest.mark.parametrize("plant", plants(), ids=str)


def picture(model: Any) -> Any:
    """All that diagnosing must leave as it was."""
    if not isinstance(model, nn.Module):
        return {name: tensor.clone() for name, tensor in model.items()}
    return {
        "state": {name: tensor.detach().clone() for name, tensor in model.state_dict().items()},
        "grads": {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()},
        "modes": [module.training for module in model.modules()],
        "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        "classes": [type(module) for module in model.modules()],
    }


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[name]) for name, value in one.items())
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(bits(one), bits(other))
    return one == other


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)


@every_plant
def test_it_is_found_and_nothing_else_changes(plant: Plant):
    case = plant.case()
    before = picture(case.model)
    random = torch.get_rng_state(), np.random.get_state()[1].tolist()
    diagnosis = case.diagnose(select=[plant.rule])
    assert plant.rule not in diagnosis.skipped, diagnosis.skipped
    assert {finding.layer for finding in diagnosis.findings} == set(plant.layers)
    for finding in diagnosis.findings:
        assert finding.message.endswith(".")
        assert finding.evidence
        compile(finding.mend, "mend", "exec")
        assert "\n" not in finding.mend
        # A line is drawn somewhere, and it is said where.
        assert any(measured.threshold is not None for measured in finding.evidence.values())
    assert same(picture(case.model), before)
    assert torch.equal(torch.get_rng_state(), random[0])
    assert np.random.get_state()[1].tolist() == random[1]


@pytest.mark.parametrize("plant", [plant for plant in plants() if not plant.healthy], ids=str)
def test_a_fix_mends_it(plant: Plant):
    case = plant.case()
    diagnosis = case.diagnose(select=[plant.rule])
    fixable = {finding.layer for finding in diagnosis.findings if finding.fix is not None}
    mended = diagnosis.fix()
    assert {finding.layer for finding in mended} == fixable
    assert {finding.layer for finding in case.diagnose(select=[plant.rule]).findings}.isdisjoint(fixable)


@pytest.mark.parametrize("code", list(registered()))
def test_every_rule_is_tried_twice_and_on_something_healthy(code: str):
    own = [plant for plant in plants(ranks=None) if plant.rule == code]
    assert sum(not plant.healthy for plant in own) >= 2
    assert sum(plant.healthy for plant in own) >= 1


HEADINGS = [
    "What it does",
    "Why it is bad",
    "Evidence",
    "Example",
    "Use instead",
    "Fix safety",
    "References",
]


@pytest.mark.parametrize("rule", registered().values(), ids=lambda rule: rule.code)
def test_every_rule_is_documented(rule: Any):
    page = rule.page
    assert [line[3:] for line in page.splitlines() if line.startswith("## ")] == HEADINGS
    assert page.startswith(f"# {rule.code} {rule.name}\n\n")
    assert rule.summary.endswith(".")
    assert type(rule).__module__.endswith(f".{rule.code.lower()}_{rule.name.replace('-', '_')}")
    example = page.partition("## Example")[2].partition("## Use instead")[0]
    assert rule.code in example
    assert ">>> " in example
