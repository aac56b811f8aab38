"""``diagnose`` and what it gives: which rules look, what is left out, and mends that are whole or not at all."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import batchnorm
from batchnorm import Diagnosis, diagnose
from batchnorm.doctor import FixError
from batchnorm.doctor.evidence import Evidence
from batchnorm.doctor.finding import Finding, Fix, Measurement, Subject
from batchnorm.doctor.registry import registered, rule_of, select
from batchnorm.doctor.rule import Need, Rule
from batchnorm.errors import ArgumentError
from doctor.pictures import picture


class Planned(Rule):
    """A rule that finds at each norm what it is told to, with a fix."""

    code, name, severity = "BN998", "planned", "warning"

    def __init__(
        self,
        apply: Callable[[Any, Subject], None] | None = None,
        holds: Callable[[Any], bool] = lambda layer: True,
        key: str | None = None,
        needs: frozenset[Need] = frozenset(),
        severity: Any = None,
    ) -> None:
        self.apply, self.holds, self.key, self.needs, self.bad = apply, holds, key, needs, severity

    def check(self, evidence: Evidence) -> Iterator[Finding]:
        for layer in evidence.layers:
            if not self.holds(layer):
                continue
            fix = None
            if self.apply is not None:
                fix = Fix("mends", lambda subject, layer=layer: self.apply(layer.module, subject), self.key)
            yield self.found(
                layer, "it is.", {"it": Measurement(1, 0)}, "mend(it)", fix=fix, severity=self.bad or "warning"
            )


class Other(Planned):
    code, name = "BN999", "other"


def plan(monkeypatch: pytest.MonkeyPatch, *rules: Rule) -> None:
    # The package has a function of the module's name.
    module = sys.modules["batchnorm.doctor.diagnose"]
    monkeypatch.setattr(module, "select_rules", lambda *_: list(rules))


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2), nn.BatchNorm1d(2))


BATCHES = [torch.randn(8, 2, generator=torch.Generator().manual_seed(0)) for _ in range(2)]


# --- rules and findings ---


def test_select_and_ignore() -> None:
    codes = list(registered())
    assert [rule.code for rule in select()] == codes == sorted(codes)
    assert [rule.code for rule in select(["bn004", "inverted-momentum"])] == ["BN004", "BN011"]
    assert [rule.code for rule in select("BN004")] == ["BN004"]
    assert {rule.code for rule in select(["BN01"])} == {code for code in codes if code.startswith("BN01")}
    for chosen, ignored in (([], None), (["BN011"], ["BN01"]), (["BN"], ["BN00", "BN01", "BN02"])):
        with pytest.raises(ArgumentError, match=r"no rule is (left|selected)\."):
            select(chosen, ignored)
    assert "BN004" not in [rule.code for rule in select(None, ["poisoned-statistics"])]
    assert rule_of("bn011") is rule_of("inverted-momentum") is registered()["BN011"]
    for wrong in ("BN9", "", "stale", "E501"):
        with pytest.raises(ArgumentError, match="neither a rule nor the beginning"):
            select([wrong])
    with pytest.raises(ArgumentError, match="there is no rule 'BN9'"):
        rule_of("BN9")


def test_what_a_rule_needs_and_why_it_was_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    def why(need: Need, model: Any = None, **given: Any) -> str | None:
        plan(monkeypatch, Planned(needs=frozenset({need})))
        return diagnose(model or network(), **given).skipped.get("BN998")

    state = network().state_dict()
    assert why(Need.MODEL) is None
    assert why(Need.MODEL, state) == "only tensors were given, and this needs the model"
    assert why(Need.OPTIMIZER) == "no optimizer was given (optimizer=)"
    model = network()
    assert why(Need.OPTIMIZER, model, optimizer=torch.optim.SGD(model.parameters())) is None
    assert why(Need.BATCHES) == why(Need.GRAPH) == "no batches were given (batches=)"
    assert why(Need.BACKWARD) == "no backward pass was run: no batches were given (batches=)"
    assert why(Need.GRAPH, state) == "only tensors were given, and this needs the model"
    assert [why(need, batches=BATCHES) for need in (Need.BATCHES, Need.GRAPH, Need.BACKWARD)] == [None] * 3
    model = network().requires_grad_(False)
    assert why(Need.BACKWARD, model, batches=BATCHES) == (
        "no backward pass was run: nothing in the output needs a gradient"
    )
    model = network()
    model.lock = threading.Lock()
    assert why(Need.GRAPH, model, batches=BATCHES).startswith(
        "what feeds what is not known: the model cannot be copied"
    )
    assert why(Need.RANKS) == "this is not one of several processes (torch.distributed)"


def test_no_more_is_done_than_rules_ask_for(monkeypatch: pytest.MonkeyPatch) -> None:
    plan(monkeypatch, Planned(needs=frozenset({Need.BATCHES})))
    diagnosis = diagnose(network(), batches=BATCHES)
    assert diagnosis.evidence.graph is None
    assert diagnosis.evidence.layers[0].gradient is None


def test_the_worst_comes_first_then_rules_then_layers_as_they_are_called(monkeypatch: pytest.MonkeyPatch) -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.first = nn.BatchNorm1d(2), nn.BatchNorm1d(2)

        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return self.last(self.first(input))

    plan(monkeypatch, Other(severity="error"), Other(severity="info"), Planned())
    diagnosis = diagnose(Backwards(), batches=BATCHES)
    assert [(each.severity, each.layer) for each in diagnosis.findings] == [
        *(("error", "first"), ("error", "last"), ("warning", "first")),
        *(("warning", "last"), ("info", "first"), ("info", "last")),
    ]
    assert not diagnosis.ok
    assert len(diagnosis.at_least("warning")) == 4
    plan(monkeypatch, Planned(severity="info"))
    assert diagnose(Backwards()).ok


def test_per_layer_ignores() -> None:
    model = nn.ModuleDict({name: nn.BatchNorm1d(2, momentum=0.9) for name in ("encoder", "head")})
    model["encoder"].running_var.fill_(-1)
    codes = ["BN004", "BN011"]
    diagnosis = diagnose(model, select=codes, per_layer_ignores={"enc*": ["BN004"], "head": ["BN01"]})
    assert [(each.rule, each.layer) for each in diagnosis.findings] == [("BN011", "encoder")]
    assert diagnosis.ignored == 2
    with pytest.raises(ArgumentError, match="neither a rule"):
        diagnose(model, per_layer_ignores={"*": ["X"]})


def test_arguments_that_mean_nothing() -> None:
    with pytest.raises(ArgumentError, match="accumulation_steps is 0"):
        diagnose(network(), accumulation_steps=0)
    with pytest.raises(ArgumentError, match="no batch norm"):
        diagnose({"weight": torch.ones(2)})
    with pytest.raises(ArgumentError, match=r"no torch\.nn\.Module"):
        diagnose(lambda x: x)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="no rule is selected"):
        diagnose(network(), select=[])


class Stream(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
    """Gives some samples, and says in its own way that it does not know how many."""

    def __init__(self, error: type[Exception]) -> None:
        self.error = error

    def __iter__(self) -> Iterator[torch.Tensor]:
        yield from torch.randn(64, 2)

    def __len__(self) -> int:
        raise self.error


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"optimizer": [torch.optim.SGD(network().parameters(), 0.1)]}, "optimizer is a list and no"),
        ({"optimizer": "adam"}, "optimizer is a str and no"),
        ({"optimizer": ()}, "optimizer is a tuple and no"),
        ({"optimizer": torch.optim.SGD(network().parameters(), 0.1)}, "none of the model's parameters"),
        ({"before": 3}, "before is a int and no"),
        ({"before": {}}, "before is a dict and no"),
        ({"weights_from": 3}, "weights_from=3 is not known"),
        ({"weights_from": "kersa"}, "weights_from='kersa' is not known.*keras"),
        ({"accumulation_steps": 1.5}, r"accumulation_steps is 1\.5"),
        ({"batches": BATCHES, "max_batches": 2.5}, r"max_batches is 2\.5"),
        ({"batches": BATCHES, "max_batches": "2"}, "max_batches is '2'"),
        ({"batches": BATCHES, "loss": "ce"}, "loss is a str, which cannot be called"),
        ({"batches": BATCHES, "forward": "ce"}, "forward is a str, which cannot be called"),
        ({"batches": (torch.randn(8, 2), torch.zeros(8, dtype=torch.long))}, r"one \(input, target\) pair"),
        ({"batches": [torch.randn(8, 2), torch.zeros(8)]}, r"one \(input, target\) pair"),
        ({"batches": [{"input": torch.ones(8, 2)}], "loss": nn.MSELoss()}, "a dict and no .* pair.*forward="),
    ],
)
def test_arguments_of_the_wrong_kind(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        diagnose(network(), select=["BN011"], **options)


def test_what_only_looks_so() -> None:
    model = network()
    part = torch.optim.SGD(model[1].parameters(), 0.1)
    assert diagnose(model, optimizer=part, select=["BN016"]).ok
    assert diagnose(nn.BatchNorm1d(2, affine=False), optimizer=part, select=["BN011"]).ok  # none to be in it
    for batches in (tuple(BATCHES), [torch.randn(8, 2), torch.randn(4, 2)]):
        assert diagnose(model, batches=batches, select=["BN011"]).evidence.training.samples[1] == len(batches[1])


@pytest.mark.parametrize("error", [TypeError, NotImplementedError])
def test_a_stream_has_no_length(error: type[Exception]) -> None:
    loader = torch.utils.data.DataLoader(Stream(error), batch_size=16)
    for most, ends in ((3, False), (4, True), (8, True)):
        evidence = diagnose(network(), batches=loader, max_batches=most, select=["BN001"]).evidence
        assert (evidence.again, evidence.ends, evidence.training.samples) == (True, ends, (16,) * min(most, 4))


def test_one_dict_is_one_batch() -> None:
    evidence = diagnose(network(), batches={"input": torch.randn(8, 2)}, select=["BN001"]).evidence
    assert evidence.training.samples == (8,)


def test_pairs_of_a_dict_and_a_target() -> None:
    pairs = [({"input": each}, torch.zeros(8, 2)) for each in BATCHES]
    evidence = diagnose(network(), batches=pairs, loss=nn.functional.mse_loss, select=["BN001", "BN022"]).evidence
    assert len(evidence.training.losses) == 2


def test_a_norm_that_raises_is_an_error_unless_a_rule_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    plan(monkeypatch, Planned(severity="error"))
    diagnosis = diagnose(network(), batches=[torch.randn(1, 2)])
    assert diagnosis.evidence.training is not None
    assert diagnosis.evidence.training.failure is not None
    for severity in ("warning", "info"):
        plan(monkeypatch, Planned(severity=severity))
        with pytest.raises(ArgumentError, match="in training mode on batch 0, at 1 with input of shape \\(1, 2\\)"):
            diagnose(network(), batches=[torch.randn(1, 2)])
    with pytest.raises(ArgumentError, match="at the model itself"):
        diagnose(nn.BatchNorm1d(2), batches=[torch.randn(1, 2)])


# --- mends ---


def doubled(layer: Any, _: Subject) -> None:
    layer.momentum = 0.2


def unmended(layer: Any) -> bool:
    return layer.momentum != 0.2


def test_mends_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    plan(monkeypatch, Planned(doubled, unmended), Other())
    model = network()
    diagnosis = diagnose(model, batches=BATCHES)
    assert {(each.rule, each.layer) for each in diagnosis.fix()} == {("BN998", "1"), ("BN998", "3")}
    assert [model[1].momentum, model[3].momentum] == [0.2, 0.2]
    plan(monkeypatch, Other())
    assert diagnose(model).fix() == ()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_all_mends_or_none(monkeypatch: pytest.MonkeyPatch, error: type[BaseException]) -> None:
    def breaks(layer: Any, subject: Subject) -> None:
        doubled(layer, subject)
        layer.running_mean += 1
        layer.weight.data = torch.ones(5)
        batchnorm.freeze(subject.model)
        subject.optimizer.param_groups[0]["lr"] = 7.0
        if layer is subject.model[3]:
            raise error("no")

    plan(monkeypatch, Planned(breaks))
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before, diagnosis = picture(model), diagnose(model, optimizer=optimizer)
    with pytest.raises(FixError if error is ValueError else error, match="no"):
        diagnosis.fix()
    assert picture(model) == before
    assert optimizer.param_groups[0]["lr"] == 1.0


def test_a_mend_that_does_not_help_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    plan(monkeypatch, Planned(doubled))
    model = network()
    before, diagnosis = picture(model), diagnose(model)
    with pytest.raises(FixError, match="mended, and found again: BN998 at 1; BN998 at 3"):
        diagnosis.fix()
    assert picture(model) == before


def test_mends_of_one_key_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    plan(monkeypatch, Planned(lambda layer, subject: calls.append(layer), lambda layer: not calls, key="all"))
    diagnosis = diagnose(network())
    assert len(diagnosis.fix()) == 2
    assert len(calls) == 1


def test_a_checkpoint_is_mended_in_its_dictionary_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    fails = False

    class Counts(Planned):
        def check(self, evidence: Evidence) -> Iterator[Finding]:
            for layer in evidence.layers:
                if layer.values("running_var").min() < 0:
                    yield self.found(layer, "it is.", {}, "mend(it)", fix=Fix("mends", mend))

    def mend(subject: Subject) -> None:
        subject.state["1.running_var"] = torch.ones(2)
        subject.state.pop("3.running_var")
        if fails:
            raise ValueError("no")

    plan(monkeypatch, Counts())
    state = network().state_dict()
    state["1.running_var"] = poisoned = -torch.ones(2)
    before, diagnosis, fails = dict(state), diagnose(state), True
    with pytest.raises(FixError, match="no"):
        diagnosis.fix()
    assert list(state) == list(before)
    assert state["1.running_var"] is poisoned
    fails = False
    assert len(diagnosis.fix()) == 1
    assert state["1.running_var"].tolist() == [1, 1]
    assert "3.running_var" not in state


def test_batches_that_are_used_up_are_not_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    plan(monkeypatch, Planned(doubled))
    diagnosis: Diagnosis = diagnose(network(), batches=iter(BATCHES))
    assert len(diagnosis.fix()) == 2
