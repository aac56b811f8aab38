"""The lines of mends, pasted: what they say is what happens."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import batchnorm
from batchnorm import Finding
from doctor.plant import Case, plants


def case(name: str, rule: str) -> Case:
    return next(each for each in plants() if (each.rule, each.name) == (rule, name)).case()


def pasted(finding: Finding, case: Case) -> None:
    exec(finding.mend, {"torch": torch, "batchnorm": batchnorm, "model": case.model, "batches": case.batches})


@pytest.mark.parametrize(
    "name", ["one_output_for_two_norms", "one_bias_of_two_layers", "one_layer_called_twice", "of_a_function"]
)
def test_a_bias_is_gone_and_evaluation_stays(name: str):
    planted = case(name, "BN017")
    model = planted.model.train()
    for parameter in model.parameters():
        parameter.data.uniform_(0.5, 1.5)
    for _ in range(30):
        model(planted.batches)
    expected = model.eval()(planted.batches)
    (finding,) = planted.diagnose(select=["BN017"]).findings
    pasted(finding, planted)
    assert torch.allclose(model(planted.batches), expected, atol=1e-4)
    assert planted.diagnose(select=["BN017"]).findings == ()


@pytest.mark.parametrize("name", ["no_statistics", "no_statistics_without_gamma"])
def test_a_layer_that_is_given_statistics_stays_the_same_layer(name: str):
    planted = case(name, "BN024")
    layer = planted.model[1]
    gamma, eps = layer.weight, layer.eps
    if gamma is not None:
        nn.init.uniform_(gamma)
    (finding,) = planted.diagnose(select=["BN024"]).findings
    pasted(finding, planted)
    assert planted.model[1] is layer
    assert layer.weight is gamma
    assert layer.eps == eps
    assert layer.running_mean.dtype == planted.batches[0].dtype
    assert layer.running_mean.any()
    assert planted.diagnose(select=["BN024", "BN001", "BN013"]).findings == ()


def test_a_momentum_of_zero_is_made_one_that_moves():
    planted = case("a_momentum_of_zero_from_the_start", "BN010")
    (finding,) = planted.diagnose(select=["BN010"]).findings
    assert "lost" not in finding.message
    assert "momentum is 0" in finding.message
    assert finding.fix is None
    pasted(finding, planted)
    assert planted.diagnose(select=["BN010"]).findings == ()


def test_dropout_between_recurrent_layers_is_turned_off_and_the_layer_stays():
    planted = case("between_the_layers_of_an_lstm", "BN018")
    layer = planted.model.recurrent
    (finding,) = planted.diagnose(select=["BN018"]).findings
    assert finding.evidence["variance with dropout over that without"].value > 1.3
    pasted(finding, planted)
    assert planted.model.recurrent is layer
    assert planted.diagnose(select=["BN018"]).findings == ()


@pytest.mark.parametrize(
    ("momentum", "severity", "says"),
    [
        *((1.0, "info", "about 1 batch"), (1.5, "error", "a variance can become negative")),
        *((2.5, "error", "without end"), (-0.1, "error", "without end"), (float("nan"), "error", "nan")),
    ],
)
def test_a_momentum_that_gives_no_average_is_wrong(momentum: float, severity: str, says: str):
    layer = nn.Sequential(nn.BatchNorm1d(4, momentum=momentum))
    (finding,) = batchnorm.diagnose(layer, select=["BN011"]).findings
    assert finding.severity == severity
    assert says in finding.message
    assert finding.fix is None
