"""The lines of code that findings give, and mends of the whole model: what is pasted does what it says."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import batchnorm
from batchnorm import Diagnosis, diagnose
from batchnorm.doctor.mends import quoted


def network(momentum: float = 0.1) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, momentum=momentum), nn.ReLU(), nn.Linear(8, 3))


def deep() -> nn.Sequential:
    """Its statistics are of other data than it gets."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3), nn.BatchNorm1d(3))
    for _ in range(60):
        model(torch.randn(64, 4))
    return model


def pasted(diagnosis: Diagnosis, **names: Any) -> dict[str, Any]:
    """The names after the lines of all findings were run."""
    assert diagnosis.findings
    names = {"torch": torch, "batchnorm": batchnorm, **names}
    for finding in diagnosis.findings:
        exec(finding.mend, names)
    return names


# --- paths ---


PATHS = ["a.0", 'a"b', "a'b", "a\"'b", "x\ny", "b\x1b[31m", "\\", "层", "", "\ud800", "\u2028"]


@pytest.mark.parametrize("path", PATHS, ids=ascii)
def test_a_path_in_quotes_is_that_path(path: str) -> None:
    assert eval(quoted(path)) == path
    assert "\n" not in quoted(path)
    assert quoted(path).isprintable()


@pytest.mark.parametrize("code", ["BN011", "BN014", "BN013"])
def test_paths_of_any_name(code: str) -> None:
    names = ['a"b', "x\ny", "b\x1b[31m", "c'd"]
    model = nn.ModuleDict({name: nn.BatchNorm1d(3, momentum=0.9) for name in names})
    for layer in model.values():
        layer.half()
        layer.track_running_stats = False
    pasted(diagnose(model, select=[code]), model=model)
    assert diagnose(model, select=[code]).findings == ()


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, lambda model: nn.DataParallel(torch.compile(model))])
def test_a_model_in_a_wrapper(wrap: Any) -> None:
    model = wrap(network(0.99))
    diagnosis = diagnose(model, select=["BN011"])
    assert [each.layer for each in diagnosis.findings] == ["1"]
    pasted(diagnosis, model=model)
    assert diagnose(model, select=["BN011"]).ok


def test_a_wrapper_keeps_what_is_made_anew() -> None:
    model = nn.DataParallel(network())
    diagnosis = diagnose(model, batches=[torch.full((8, 4), torch.nan)], select=["BN004"])
    names = pasted(diagnosis, model=model)
    assert names["model"] is model
    assert type(model.module[1]) is batchnorm.BatchNorm1d


# --- optimizers ---


def trained(model: nn.Module, optimizer: torch.optim.Optimizer, dtype: torch.dtype = torch.float32) -> None:
    optimizer.zero_grad()
    model(torch.randn(32, 4, dtype=dtype)).square().mean().backward()
    optimizer.step()


class Own(torch.optim.SGD):
    pass


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
        (torch.optim.AdamW, {"betas": (0.5, 0.99)}),
        (Own, {"momentum": 0.9}),
    ],
)
def test_the_optimizer_stays_what_it_is(kind: Any, options: dict[str, Any]) -> None:
    model, beside = network(), network()
    optimizer = kind([*model.parameters(), *beside.parameters()], lr=0.1, weight_decay=0.01, **options)
    trained(model, optimizer)
    state = {id(key): value for key, value in optimizer.state.items()}
    names = pasted(diagnose(model, optimizer=optimizer, select=["BN016"]), model=model, optimizer=optimizer)
    assert names["optimizer"] is optimizer
    assert diagnose(model, optimizer=optimizer, select=["BN016"]).findings == ()
    assert {id(key): value for key, value in optimizer.state.items()} == state
    decayed, without = optimizer.param_groups
    assert (len(decayed["params"]), len(without["params"])) == (10, 2)
    for group, decay in ((decayed, 0.01), (without, 0.0)):
        assert {name: group[name] for name in options} == options
        assert group["weight_decay"] == decay


def test_under_a_scheduler_the_line_says_what_else() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.01)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    (finding,) = diagnose(model, optimizer=optimizer, select=["BN016"]).findings
    assert "scheduler anew" in finding.mend
    with pytest.warns(UserWarning, match="scheduler"):
        exec(finding.mend, {"batchnorm": batchnorm, "model": model, "optimizer": optimizer})
    assert diagnose(model, optimizer=optimizer, select=["BN016"]).findings == ()


def test_dead_channels_keep_their_optimizer() -> None:
    model = network()
    with torch.no_grad():
        model[1].weight[:4] = 0
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, betas=(0.5, 0.9))
    names = pasted(diagnose(model, select=["BN020"]), model=model, optimizer=optimizer)
    assert names["optimizer"] is optimizer
    groups = [(group["lr"], group["weight_decay"], group["betas"]) for group in optimizer.param_groups]
    assert groups == [(pytest.approx(0.01), decay, (0.5, 0.9)) for decay in (0.01, 0.0)]


class OwnForward(nn.BatchNorm1d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input)


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("kind", [nn.BatchNorm1d, OwnForward])
@pytest.mark.parametrize("made", [torch.optim.Adam, lambda groups: torch.optim.SGD(groups, 0.1, momentum=0.9)])
def test_the_state_of_half_precision_follows(made: Any, kind: Any, given: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 8), kind(8)).bfloat16()
    optimizer = made(model.parameters())
    trained(model, optimizer, torch.bfloat16)
    diagnosis = diagnose(model, optimizer=optimizer if given else None, select=["BN014"])
    if kind is OwnForward and not given:
        assert "optimizer=optimizer" in diagnosis.findings[0].mend
        return
    pasted(diagnosis, model=model, optimizer=optimizer)
    for parameter in model[1].parameters():
        assert parameter.dtype == torch.float32
        state = [value for value in optimizer.state[parameter].values() if torch.is_tensor(value)]
        assert state
        assert all(value.dtype == torch.float32 for value in state)
    assert all(parameter.dtype == torch.bfloat16 for parameter in model[0].parameters())
    trained(model, optimizer, torch.bfloat16)


def test_without_state_a_line_is_short() -> None:
    model = network().bfloat16()
    optimizer = torch.optim.Adam(model.parameters())
    (finding,) = diagnose(model, optimizer=optimizer, select=["BN014"]).findings
    assert finding.mend == 'model.get_submodule("1").float()'


# --- batches that are too small ---


@pytest.mark.parametrize("samples", [1, 33])
def test_a_loader_with_larger_batches(samples: int) -> None:
    data = torch.utils.data.TensorDataset(torch.randn(samples + 64, 4))
    loader = torch.utils.data.DataLoader(data, batch_size=samples if samples == 1 else 32, shuffle=True)
    names = pasted(diagnose(network(), batches=loader, select=["BN003"]), data=data)
    assert diagnose(network(), batches=names["loader"], select=["BN003"]).findings == ()


# --- statistics taken anew ---

CODES = ["BN001", "BN004"]


def other_data() -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(64, 4) + 3 for _ in range(4)]


def of_a_loader() -> Iterator[Tensor]:
    # It has a length, and gives its batches once.
    return iter(torch.utils.data.DataLoader(torch.cat(other_data()), batch_size=64))


@pytest.mark.parametrize("batches", [lambda: iter(other_data()), of_a_loader])
def test_of_an_iterator_the_other_mends_are_made(batches: Any) -> None:
    model = deep()
    model[1].momentum = 0.99
    diagnosis = diagnose(model, batches=batches(), select=[*CODES, "BN011"])
    stale = [each for each in diagnosis.findings if each.rule == "BN001"]
    assert stale
    for finding in stale:
        assert finding.fix is None
        assert finding.mend.endswith("# with batches made anew: an iterator gives them once")
    assert [each.rule for each in diagnosis.fix()] == ["BN011"]
    assert model[1].momentum == pytest.approx(0.01)


class Endless:
    """Gives batches for ever, from the start each time."""

    def __iter__(self) -> Iterator[Tensor]:
        yield from itertools.islice(itertools.cycle(other_data()), 200)
        raise AssertionError("it was run on and on")


def test_endless_batches_are_not_run_to_their_end() -> None:
    model = deep()
    diagnosis = diagnose(model, batches=Endless(), select=CODES)
    assert diagnosis.findings
    assert diagnosis.fix() == ()
    pasted(diagnosis, model=model, batches=Endless())
    assert diagnose(model, batches=Endless(), select=CODES).ok


def test_one_that_is_ignored_stays_as_it_is() -> None:
    model = deep()
    model[4].running_var[0] = torch.nan
    ignored, before = {"1": ["BN"]}, copy.deepcopy(model[1].state_dict())
    diagnosis = diagnose(model, batches=other_data(), select=CODES, per_layer_ignores=ignored)
    assert {each.layer for each in diagnosis.findings} == {"4"}
    finding = diagnosis.findings[0]
    assert finding.fix is not None
    assert "but of 1 that are ignored" in finding.fix.description
    diagnosis.fix()
    after = model[1].state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert model[1].momentum == 0.1
    # What the other gets is made by the statistics that stayed.
    model.eval()
    given = torch.cat([model[:4](each) for each in other_data()])
    torch.testing.assert_close(model[4].running_mean, given.mean(0))
    torch.testing.assert_close(model[4].running_var, given.var(0))


def test_another_rule_that_is_ignored_keeps_no_statistics() -> None:
    model = deep()
    diagnosis = diagnose(model, batches=other_data(), select=CODES, per_layer_ignores={"1": ["BN017"]})
    before = model[1].running_mean.clone()
    assert diagnosis.fix()
    assert not torch.equal(model[1].running_mean, before)


# --- a NaN in the batches ---


def with_nan(at: int) -> list[Tensor]:
    batches = other_data()
    batches[at][0, 0] = torch.nan
    return batches


def test_no_statistics_are_taken_of_nan() -> None:
    model = deep()
    model[4].running_var[0] = torch.inf
    model[1].momentum = 0.99
    diagnosis = diagnose(model, batches=with_nan(2), select=[*CODES, "BN011"])
    found = {(each.rule, each.layer, each.severity) for each in diagnosis.findings}
    assert {("BN004", "4", "error"), ("BN004", "1", "error")} <= found
    assert [each.rule for each in diagnosis.fix()] == ["BN011"]


@pytest.mark.parametrize(
    ("model", "severity", "layer"),
    [
        (network(), "error", "1"),
        (network().eval(), "warning", "1"),
        (batchnorm.convert(network(), "batch"), "info", "1"),
        (nn.Sequential(batchnorm.BatchNorm1d(4), nn.Linear(4, 8), nn.BatchNorm1d(8)), "error", "2"),
        (nn.Sequential(batchnorm.BatchNorm1d(4, nonfinite="propagate")), "error", "0"),
    ],
)
def test_which_layer_is_told_of_nan(model: nn.Module, severity: str, layer: str) -> None:
    (finding,) = diagnose(model, batches=with_nan(1), select=["BN004"]).findings
    assert (finding.severity, finding.layer) == (severity, layer)
    assert "in batch 1" in finding.message
    batches = [(each, torch.zeros(64)) for each in with_nan(1)]
    names = {"torch": torch, "batchnorm": batchnorm, "model": model, "batches": batches}
    exec(finding.mend, names)
    left = diagnose(names["model"], batches=[each for each, _ in names["batches"]], select=["BN004"])
    assert left.ok
