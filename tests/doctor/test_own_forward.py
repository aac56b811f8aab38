"""What norms with a ``forward`` of their own normalise by, and modules that no rule knows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import batchnorm
from doctor import own_forward
from doctor.own_forward import AlwaysByBatch, FrozenByForward


def batches(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(16, 3, 8, 8).to(dtype) for _ in range(2)]


@pytest.mark.parametrize(
    ("name", "training", "evaluation"),
    [
        ("FrozenByForward", False, False),
        ("ScaleAndShift", False, False),
        ("FrozenAndActivated", False, False),
        ("AlwaysByBatch", True, True),
        ("AsTorch", True, False),
        ("Activated", True, False),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_by_batch_is_what_was_seen(name: str, training: bool, evaluation: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), getattr(own_forward, name).trained(4)).to(dtype)
    (layer,) = batchnorm.diagnose(model, batches=batches(dtype), select=["BN024"]).evidence.layers
    assert layer.in_training is not None
    assert layer.in_evaluation is not None
    assert {call.by_batch for call in layer.in_training.calls} == {training}
    assert {call.by_batch for call in layer.in_evaluation.calls} == {evaluation}
    assert (layer.frozen is not None) == (not training)


def test_one_that_goes_by_the_batch_leaks_in_evaluation() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), AlwaysByBatch.trained(4))
    found = batchnorm.diagnose(model, batches=batches(), select=["BN024"]).findings
    assert [each.layer for each in found] == ["1"]


def test_statistics_taken_anew_are_not_those_of_a_class_that_is_frozen() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), FrozenByForward.trained(4))
    for batch in 40 * batches():
        model(batch)
    before = {name: tensor.clone() for name, tensor in model[2].state_dict().items()}
    diagnosis = batchnorm.diagnose(model, batches=[100 * batch for batch in batches()], select=["BN001"])
    (finding,) = diagnosis.findings
    assert finding.mend.endswith("# with momentum = 0 before at 2: frozen by their class, not by their flag")
    mean = model[1].running_mean.clone()
    assert [each.layer for each in diagnosis.fix()] == ["1"]
    assert not torch.equal(model[1].running_mean, mean)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model[2].state_dict().items())
    assert model[2].momentum == 0.1


class Functional(nn.Module):
    """The statistics are its own, and the class is no batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.full((4,), torch.nan))
        self.register_buffer("running_var", torch.ones(4))

    def forward(self, input: Tensor) -> Tensor:
        return F.batch_norm(input, self.running_mean, self.running_var, training=self.training)


class ByOperator(nn.Module):
    """It has a batch norm and never calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, input: Tensor) -> Tensor:
        return F.batch_norm(input, self.norm.running_mean, self.norm.running_var, training=self.training)


def test_other_classes_with_running_statistics_are_named(tmp_path: Path) -> None:
    body = [nn.Conv2d(3, 4, 3), *(Functional() for _ in range(7)), nn.InstanceNorm2d(4, track_running_stats=True)]
    diagnosis = batchnorm.diagnose(nn.Sequential(*body))
    assert list(diagnosis.evidence.unread) == [str(number) for number in range(1, 8)]
    told = str(diagnosis)
    assert "not looked at: 1, 2, 3, 4, 5 and 2 more: Functional has running statistics" in told
    assert list(diagnosis.to_json()["unread"]) == list(diagnosis.evidence.unread)
    page = diagnosis.to_html(tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Modules that were not looked at" in page


def test_batch_norm_as_a_function_is_named() -> None:
    select = ["BN017"]  # it asks for the graph
    diagnosis = batchnorm.diagnose(nn.Sequential(ByOperator(), nn.ReLU()), batches=batches(), select=select)
    assert diagnosis.evidence.unread == {"0": "its code calls torch.nn.functional.batch_norm itself"}
    plain = nn.Sequential(FrozenByForward(3), nn.BatchNorm2d(3), nn.InstanceNorm2d(3))
    assert not batchnorm.diagnose(plain, batches=batches(), select=select).evidence.unread
