import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from pydantic_sarif.model import StaticAnalysisResultsFormatSarifVersion210JsonSchema as Log  # of the official schema
from torch import nn

import batchnorm
from batchnorm.doctor.as_sarif import Place, as_sarif, place_of
from batchnorm.doctor.finding import Measurement
from doctor.made import NOTHING, diagnosis, finding


def valid(log: dict) -> dict:
    """As a file would have it: strict JSON, valid SARIF 2.1.0."""
    text = json.dumps(log, allow_nan=False)
    Log.model_validate_json(text, strict=True)
    return json.loads(text)


def run_of(log: dict) -> dict:
    (run,) = valid(log)["runs"]
    return run


def test_a_diagnosis_of_a_model():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, momentum=0.99))
    run = run_of(batchnorm.diagnose(model, batches=[torch.randn(64, 4)]).to_sarif())
    (found,) = [each for each in run["results"] if each["ruleId"] == "BN011"]
    assert found["level"] == "warning"
    assert found["message"]["text"].startswith("1: momentum is 0.99")
    assert found["locations"] == [{"logicalLocations": [{"fullyQualifiedName": "1", "name": "1", "kind": "member"}]}]
    assert found["properties"]["evidence"]["momentum"]["threshold"] == 0.5


def test_levels_and_the_model_itself():
    run = run_of(as_sarif(diagnosis(finding(severity="error"), finding(severity="info"), finding("", fix=NOTHING))))
    assert [each["level"] for each in run["results"]] == ["error", "note", "warning"]
    logical = run["results"][2]["locations"][0]["logicalLocations"][0]
    assert logical["fullyQualifiedName"] == "(the model itself)"
    assert run["results"][2]["properties"]["fix"] == "does nothing"


def test_rules_come_with_their_pages_and_findings_point_to_them():
    run = run_of(as_sarif(diagnosis(finding(rule="BN011"), finding(rule="BN004"), skipped={"BN016": "no {reason}"})))
    rules = run["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == ["BN004", "BN011", "BN016"]
    assert all(rules[each["ruleIndex"]]["id"] == each["ruleId"] for each in run["results"])
    assert "## Why it is bad" in rules[1]["help"]["markdown"]
    (note,) = run["invocations"][0]["toolConfigurationNotifications"]
    assert note["associatedRule"] == {"id": "BN016", "index": 2}
    assert note["message"]["text"] == "BN016 was not checked: no {{reason}}"


def test_layers_are_told_apart_and_stay_the_same_from_run_to_run():
    one, other = (run_of(as_sarif(diagnosis(finding("a"), finding("b"))))["results"] for _ in range(2))
    prints = [each["partialFingerprints"]["primaryLocationLineHash"] for each in one]
    assert len(set(prints)) == 2
    assert prints == [each["partialFingerprints"]["primaryLocationLineHash"] for each in other]
    moved = run_of(as_sarif(diagnosis(finding("b", message="momentum is 0.7."))))["results"]
    assert moved[0]["partialFingerprints"]["primaryLocationLineHash"] == prints[1]


def test_what_is_not_finite_becomes_a_word():
    run = run_of(as_sarif(diagnosis(finding(evidence={"gap": Measurement(float("nan"), float("inf"))}))))
    assert run["results"][0]["properties"]["evidence"]["gap"]["value"] == "nan"


def test_a_file_of_the_working_directory_is_named_from_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inside = as_sarif(diagnosis(finding()), Place(Path("my models/net.py"), 7))
    assert run_of(inside)["results"][0]["locations"][0]["physicalLocation"] == {
        "artifactLocation": {"uri": "my%20models/net.py", "uriBaseId": "%SRCROOT%"},
        "region": {"startLine": 7},
    }
    outside = run_of(as_sarif(diagnosis(finding()), Place(Path("/weights/net.pt"))))
    physical = outside["results"][0]["locations"][0]["physicalLocation"]
    assert physical == {"artifactLocation": {"uri": "file:///weights/net.pt"}}


class Net(nn.Sequential):
    pass


def test_the_class_of_a_model_stands_for_it_where_it_is_the_users(monkeypatch):
    here = Path(__file__)
    monkeypatch.chdir(here.parent)
    place = place_of(Net)
    assert place is not None
    assert here.read_text().splitlines()[place.line - 1] == "class Net(nn.Sequential):"
    (result,) = run_of(batchnorm.diagnose(Net(nn.BatchNorm1d(2, momentum=0.9)), select=["BN011"]).to_sarif())["results"]
    assert result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == here.name
    assert place_of(nn.Sequential) is None
    assert place_of(nn.Sequential()) is None
    monkeypatch.chdir("/")
    assert place_of(nn.Sequential) is None  # installed: no file of the user's, though below the working directory


def test_the_check_refuses_what_is_no_sarif():
    for spoil in (
        lambda log: log.update(version="2.0.0"),
        lambda log: log["runs"][0].pop("tool"),
        lambda log: log["runs"][0]["results"][0].update(level="info"),
        lambda log: log["runs"][0]["results"][0].update(layer="1"),
        lambda log: log["runs"][0]["results"][0].update(ruleIndex="0"),
    ):
        log = as_sarif(diagnosis(finding()))
        spoil(log)
        with pytest.raises(ValidationError):
            valid(log)
