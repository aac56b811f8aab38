"""What the planted models do not show of BN006 to BN026: severities, and that mends are exact."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

import batchnorm
from batchnorm import Diagnosis
from doctor.plant import plants

SETTINGS = ["BN006", "BN007", "BN008", "BN013", "BN014", "BN016", "BN022", "BN025", "BN026"]


def of(rule: str, name: str) -> Diagnosis:
    plant = next(each for each in plants() if each.rule == rule and each.name == name)
    return plant.case().diagnose(select=[rule])


def network(**options: object) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, **options), nn.ReLU())


@pytest.mark.parametrize(
    ("rule", "name", "severity", "mends"),
    [
        ("BN006", "the_activation_is_gone", "error", False),
        ("BN006", "what_is_left_of_the_activation", "error", False),
        ("BN006", "a_ghost_norm", "warning", False),
        ("BN006", "a_frozen_one", "error", False),
        ("BN006", "a_hook", "warning", False),
        ("BN006", "all_by_hand", "error", True),
        ("BN006", "it_trains_on_in_evaluation_mode", "warning", True),
        ("BN013", "untracked_with_initial_statistics", "error", True),
        ("BN013", "untracked_with_statistics", "warning", False),
        ("BN013", "statistics_taken_away", "warning", True),
        ("BN013", "an_average_without_a_count", "error", True),
        ("BN013", "a_moved_average_without_a_count", "error", False),
        ("BN013", "half_of_the_statistics", "error", False),
        ("BN014", "trained_in_bfloat16", "warning", True),
        ("BN014", "trained_without_its_optimizer", "warning", False),
        ("BN014", "ours_in_float16_for_inference", "info", True),
        ("BN014", "near_the_end_of_float16", "warning", True),
        ("BN014", "a_checkpoint", "info", True),
        ("BN014", "a_forward_of_its_own", "warning", False),
        ("BN016", "the_default_of_adamw", "info", True),
        ("BN016", "named_and_in_two_groups", "warning", True),
        ("BN016", "a_group_of_norms_only_under_a_scheduler", "info", True),
        ("BN016", "under_a_scheduler", "info", False),
        ("BN026", "from_keras", "warning", False),
        ("BN026", "from_chainer", "info", True),
    ],
)
def test_how_bad_it_is_and_whether_it_is_mended(rule: str, name: str, severity: str, mends: bool):
    for finding in of(rule, name).findings:
        assert finding.severity == severity
        assert (finding.fix is not None) is mends


@pytest.mark.parametrize("rule", SETTINGS)
def test_nothing_is_found_where_there_is_nothing(rule: str):
    lazy = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d())
    for model in (nn.Linear(2, 2), lazy, nn.BatchNorm1d(0), nn.BatchNorm1d(3, device="meta")):
        before = None if model is lazy else copy.deepcopy(model)  # torch cannot copy it
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
        diagnosis = batchnorm.diagnose(
            model, optimizer=optimizer, select=[rule], before=before, weights_from="keras", accumulation_steps=8
        )
        assert diagnosis.findings == ()


# BN006


def test_all_that_was_lost_by_hand_is_as_before():
    plant = next(each for each in plants() if each.name == "all_by_hand")
    case = plant.case()
    diagnosis = case.diagnose(select=["BN006"])
    told = set(diagnosis.findings[0].evidence)
    assert told == {
        "running statistics",
        "gamma and beta",
        "momentum",
        "eps",
        "training",
        "weight.requires_grad",
    }
    diagnosis.fix()
    before = case.options["before"]
    input = torch.randn(4, 3, 8, 8)
    assert torch.equal(case.model(input), before(input))
    assert (case.model.norm.momentum, case.model.norm.training) == (0.03, False)
    assert not case.model.norm.weight.requires_grad
    assert int(case.model.norm.num_batches_tracked) == int(before.norm.num_batches_tracked)


def test_the_model_itself_is_no_model_from_before():
    model = network()
    with pytest.raises(batchnorm.errors.ArgumentError, match="before is the model itself"):
        batchnorm.diagnose(nn.parallel.DataParallel(model), before=model, select=["BN006"])


@pytest.mark.parametrize("change", ["double", "requires_grad", "mode"])
def test_what_changes_for_the_norms_only_is_a_loss_and_for_all_is_none(change: str):
    before = network()
    for whole in (True, False):
        model = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(before))
        changed = model if whole else model[1]
        if change == "double":
            changed.double()
        elif change == "requires_grad":
            changed.requires_grad_(False)
        else:
            changed.eval()
        findings = batchnorm.diagnose(model, before=before, select=["BN006"]).findings
        assert [each.layer for each in findings] == ([] if whole else ["1"])


# BN007


def test_a_synced_layer_computes_the_same_afterwards():
    if torch.accelerator.is_available():
        pytest.skip("here the model may be moved to the accelerator yet")
    model = nn.Sequential(nn.SyncBatchNorm(3, eps=0.1, momentum=0.3))
    twin, input = copy.deepcopy(model), torch.randn(8, 3)
    (finding,) = batchnorm.diagnose(model, select=["BN007"]).fix()
    assert finding.severity == "warning"
    for _ in range(2):
        assert torch.allclose(model(input), twin(input), atol=1e-6)
        assert torch.allclose(model[0].running_var, twin[0].running_var)
        model.eval(), twin.eval()


# BN013


@pytest.mark.parametrize("name", ["statistics_taken_away", "ours_switched_on_later", "gamma_without_affine"])
def test_a_flag_that_follows_the_tensors_changes_no_result(name: str):
    model = next(each for each in plants() if each.name == name).case().model
    twin, input = copy.deepcopy(model), torch.randn(16, 4)
    assert batchnorm.diagnose(model, select=["BN013"]).fix()
    for _ in range(2):
        assert torch.equal(model(input), twin(input))
        model.eval(), twin.eval()


def test_what_the_table_says_of_torch():
    input = torch.randn(16, 3) + 5
    untracked, taken, uncounted, half = (nn.BatchNorm1d(3, momentum=None) for _ in range(4))
    untracked.track_running_stats = False
    taken.running_mean = taken.running_var = taken.num_batches_tracked = None
    uncounted.num_batches_tracked = None
    half.running_var = None
    for layer in (untracked, taken, uncounted):
        layer(input)
        layer.eval()
    for layer in (untracked, uncounted):
        assert not layer.running_mean.any()
        assert torch.allclose(layer(input), input, rtol=1e-4)  # by 0 and 1
    assert taken(input).mean().abs() < 1e-5
    with pytest.raises(ValueError, match="either both be None"):
        half(input)
    with pytest.raises(RuntimeError):
        half.eval()(input)
    unaffine = nn.BatchNorm1d(3)
    unaffine.weight.data.fill_(7.0)
    unaffine.affine = False
    assert unaffine(input).std() > 6
    assert nn.SyncBatchNorm.convert_sync_batchnorm(unaffine).weight is None


@pytest.mark.parametrize(
    ("name", "value"), [("half_of_the_statistics", 1.0), ("the_other_half_of_the_statistics", 0.0)]
)
def test_the_missing_half_is_as_the_other_one_in_all_but_its_value(name: str, value: float):
    model = next(each for each in plants() if each.name == name).case().model
    (finding,) = batchnorm.diagnose(model, select=["BN013"]).findings
    exec(finding.mend)
    assert model[0].running_mean.dtype == model[0].running_var.dtype
    lacked = model[0].running_var if value else model[0].running_mean
    assert torch.equal(lacked, torch.full_like(lacked, value))
    model.eval()(torch.randn(3, 4, dtype=lacked.dtype))


# BN014


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("make", [nn.BatchNorm2d, batchnorm.BatchNorm2d, batchnorm.DomainBatchNorm2d])
def test_a_model_in_half_precision_trains_on_with_norms_in_float32(dtype: torch.dtype, make: type):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), make(4), nn.ReLU(), nn.Conv2d(4, 4, 1)).to(dtype)
    optimizer = torch.optim.Adam(model.parameters())
    parameters = list(model.parameters())

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        output = model(torch.randn(4, 3, 8, 8, dtype=dtype))
        output.float().square().mean().backward()
        optimizer.step()
        return output

    step()
    batchnorm.diagnose(model, optimizer=optimizer, select=["BN014"]).fix()
    assert all(one is other for one, other in zip(model.parameters(), parameters, strict=True))
    assert step().dtype == dtype
    assert {each.dtype for each in (model[1].weight, model[1].running_mean)} == {torch.float32}
    assert model[0].weight.dtype == dtype
    assert all(each.dtype == torch.float32 for each in optimizer.state[model[1].weight].values())
    model.eval()
    assert model(torch.randn(4, 3, 8, 8, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [1.0, 1.99, 37.0, 0.3])
def test_what_is_said_to_be_swallowed_is(dtype: torch.dtype, value: float):
    layer = nn.BatchNorm1d(1, affine=False).to(dtype)
    layer.running_var.fill_(value)
    evidence = batchnorm.diagnose(layer, select=["BN014"]).findings[0].evidence
    part = evidence["swallowed change of the variance"].value
    var = layer.running_var.clone()
    for share, moves in ((0.9, False), (1.1, True)):  # upward, where a power of two is coarser
        target = float(var) * (1 + share * part)
        moved = (0.9 * var.double() + 0.1 * target).to(dtype)
        assert (not torch.equal(moved, var)) is moves


# BN016


@pytest.mark.parametrize("named", [False, True])
def test_the_next_step_is_that_of_an_optimizer_that_never_decayed_them(named: bool):
    torch.manual_seed(0)
    model = network()
    twin = copy.deepcopy(model)
    given = model.named_parameters() if named else model.parameters()
    optimizer = torch.optim.SGD(given, lr=0.5, momentum=0.9, weight_decay=0.3)
    right = torch.optim.SGD(batchnorm.parameter_groups(twin, 0.3), lr=0.5, momentum=0.9)
    input = torch.randn(4, 3, 8, 8)

    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        model(input).square().mean().backward()
        optimizer.step()

    step(model, optimizer)
    step(twin, right)
    state = {key: dict(value) for key, value in optimizer.state.items()}
    batchnorm.diagnose(model, optimizer=optimizer, select=["BN016"]).fix()
    assert {key: dict(value) for key, value in optimizer.state.items()}.keys() == state.keys()
    assert all(optimizer.state[key]["momentum_buffer"] is value["momentum_buffer"] for key, value in state.items())
    # As if the first step had been without decay too.
    for key, value in zip(optimizer.state, right.state, strict=True):
        optimizer.state[key]["momentum_buffer"].copy_(right.state[value]["momentum_buffer"])
    model.load_state_dict(twin.state_dict())
    step(model, optimizer)
    step(twin, right)
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other)
    if named:
        assert [group["param_names"] for group in optimizer.param_groups] == [
            ["0.weight", "0.bias"],
            ["1.weight", "1.bias"],
        ]


@pytest.mark.parametrize(
    "make",
    [
        lambda groups: torch.optim.SGD(groups, lr=0.1, weight_decay=0.01),
        lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=0.01),
        lambda groups: torch.optim.AdamW(groups, lr=0.1, weight_decay=0.05),
        lambda groups: torch.optim.Adam(groups, lr=0.1, weight_decay=0.05, decoupled_weight_decay=True),
    ],
)
def test_gamma_is_halved_in_as_many_steps_as_it_says(make):
    layer = nn.BatchNorm1d(3)
    optimizer = make(layer.parameters())
    (finding,) = batchnorm.diagnose(layer, optimizer=optimizer, select=["BN016"]).findings
    steps = finding.evidence["steps until a gamma is halved"].value
    layer.weight.grad, layer.bias.grad = torch.zeros(3), torch.zeros(3)
    for _ in range(steps):
        optimizer.step()
    assert layer.weight[0].item() == pytest.approx(0.5, abs=0.03)


def test_without_a_rate_of_decay_none_is_told():
    layer = nn.BatchNorm1d(3)
    optimizer = torch.optim.Adam(layer.parameters(), weight_decay=1e-2)
    (finding,) = batchnorm.diagnose(layer, optimizer=optimizer, select=["BN016"]).findings
    assert finding.severity == "info"
    assert list(finding.evidence) == ["weight decay", "gammas and betas that decay"]


# BN026


def test_a_framework_that_nobody_knows_is_refused():
    with pytest.raises(batchnorm.errors.ArgumentError, match="weights_from='mathematica'"):
        batchnorm.diagnose(network(), weights_from="mathematica", select=["BN026"])


def test_a_channel_is_off_by_what_it_says():
    model = network()
    model[1].running_var.fill_(2e-3)
    model.eval()
    input = torch.randn(2, 3, 8, 8)
    before = model(input)
    (finding,) = batchnorm.diagnose(model, weights_from="keras", select=["BN026"]).findings
    exec(finding.mend)
    off = finding.evidence["change of a channel's scale"].value
    assert off == pytest.approx(100 * (math.sqrt((2e-3 + 1e-5) / 3e-3) - 1) * -1)
    assert (before.norm() / model(input).norm()).item() - 1 > 0.1
