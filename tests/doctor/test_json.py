import copy
import json

import jsonschema
import numpy as np
import pytest
import torch
from torch import nn

import batchnorm
from batchnorm.doctor.as_json import SCHEMA, as_json
from batchnorm.doctor.finding import Measurement
from doctor.made import NOTHING, diagnosis, finding

CHECK = jsonschema.Draft202012Validator(SCHEMA)


def strict(done) -> dict:
    """As a file would have it: strict JSON, by the schema."""
    content = json.loads(json.dumps(as_json(done), allow_nan=False))
    CHECK.validate(content)
    return content


def test_the_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_a_model_with_and_without_findings():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, momentum=0.99))
    content = strict(batchnorm.diagnose(model))
    assert content["layers"] == [{"path": "1", "kind": "BatchNorm1d", "channels": 8}]
    assert not content["ok"]
    (found,) = [each for each in content["findings"] if each["rule"] == "BN011"]
    assert found["evidence"]["momentum"] == {"value": 0.99, "threshold": 0.5, "healthy": "at most", "unit": ""}
    assert found["fix"] == "sets momentum to 0.01"
    assert strict(batchnorm.diagnose(nn.Linear(2, 2)))["layers"] == []


def test_a_checkpoint_and_batches():
    state = nn.Sequential(nn.BatchNorm1d(4)).state_dict()
    content = strict(batchnorm.diagnose(state))
    assert content["layers"] == [{"path": "0", "kind": None, "channels": 4}]
    assert content["skipped"]["BN011"]
    strict(batchnorm.diagnose(nn.Sequential(nn.BatchNorm1d(4)), batches=[torch.randn(8, 4)]))


def test_findings_as_they_are():
    content = strict(diagnosis(finding(severity="error"), finding("", "info", fix=NOTHING), ignored=3))
    assert content["counts"] == {"error": 1, "warning": 0, "info": 1}
    assert [each["fix"] for each in content["findings"]] == [None, "does nothing"]
    assert [each["layer"] for each in content["findings"]] == ["stem.1", ""]
    assert content["ignored"] == 3


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (float("nan"), "nan"),
        (-torch.inf, "-inf"),
        (np.float64("inf"), "inf"),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (torch.tensor(2.5), 2.5),
        ("float16", "float16"),
        (True, "True"),
        (2.0, 2.0),
    ],
)
def test_numbers_of_all_kinds(value, written):
    done = diagnosis(finding(evidence={"it": Measurement(value, value, "at least", "V")}))
    (each,) = strict(done)["findings"]
    assert each["evidence"]["it"] == {"value": written, "threshold": written, "healthy": "at least", "unit": "V"}
    assert type(each["evidence"]["it"]["value"]) is type(written)


def test_the_schema_refuses_what_is_none():
    good = strict(diagnosis(finding()))
    for spoil in (
        lambda content: content.pop("version"),
        lambda content: content.update(version=2),
        lambda content: content.update(more=1),
        lambda content: content["findings"][0].update(severity="bad"),
        lambda content: content["findings"][0].update(evidence={}),
        lambda content: content["findings"][0].pop("mend"),
        lambda content: content["findings"][0]["evidence"]["momentum"].update(value=None),
        lambda content: content["skipped"].update(nothing="?"),
    ):
        content = copy.deepcopy(good)
        spoil(content)
        assert not CHECK.is_valid(content)
