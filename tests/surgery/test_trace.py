"""What feeds what: calls, values, readers; and models that trace in parts."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import batchnorm
from batchnorm.errors import SurgeryError
from batchnorm.surgery.graph import Call, Graph
from batchnorm.surgery.trace import trace


def x(*shape: int) -> Tensor:
    return torch.randn(*(shape or (2, 4)), generator=torch.Generator().manual_seed(0))


def lines(graph: Graph) -> list[str]:
    """A call a line: who gives what it takes, and who takes what it gives."""

    def name(value) -> str:
        return str(value.source) if value.source else value.state or "input"

    def readers(call: Call) -> list[str]:
        return [
            f"{' and '.join(map(str, v.readers)) or '-'}{'!' if v.escapes else ''}" for v in call.gives if not v.state
        ]

    return [f"{', '.join(map(name, call.inputs))} > {call} > {', '.join(readers(call))}" for call in graph.calls]


class Block(torch.nn.Module):
    """A residual block as people write them: modules, a method in place, a function, a module used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm1 = torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4)
        self.second, self.norm2 = torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4)
        self.act = torch.nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.norm1(self.first(x)))
        y = self.norm2(self.second(y))
        y += x
        return self.act(y)


class Branches(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


@pytest.mark.parametrize("training", [True, False])
def test_who_reads_what(training):
    assert lines(trace(Block().train(training), x())) == [
        "input > first (Linear) > norm1 (BatchNorm1d)",
        "first (Linear) > norm1 (BatchNorm1d) > act (ReLU)",
        "norm1 (BatchNorm1d) > act (ReLU) > second (Linear)",
        "act (ReLU) > second (Linear) > norm2 (BatchNorm1d)",
        "second (Linear) > norm2 (BatchNorm1d) > aten.add",
        "norm2 (BatchNorm1d), input > aten.add > act (ReLU)",
        "aten.add > act (ReLU) > -!",
    ]


def test_a_call_names_the_models_own_module_and_its_operators():
    model = torch.nn.Sequential(Block(), torch.nn.LeakyReLU(0.2))
    graph = trace(model, x())
    assert [call.module for call in graph.calls_of(model[0].act)] == [model[0].act, model[0].act]
    assert graph.calls_of(model[1])[0].step("aten.leaky_relu")[0][1] == 0.2
    norm = graph.calls_of(model[0].norm1)[0]
    assert {value.state for value in norm.reads if value.state} >= {"0.norm1.weight", "0.norm1.running_var"}
    assert norm.gives[0].shape == (2, 4)
    assert norm.gives[0].dtype is torch.float32


def test_what_is_changed_in_place_is_named():
    block = Block()
    graph = trace(block, x())
    assert [call.writes == [call.inputs[0]] for call in graph.calls if str(call) == "aten.add"] == [True]
    assert all(call.writes == [call.inputs[0]] for call in graph.calls_of(block.act))
    assert not graph.calls_of(block.first)[0].writes


def test_this_librarys_layers_are_one_call():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), batchnorm.BatchNorm1d(4), torch.nn.ReLU())
    assert lines(trace(model, x())) == [
        "input > 0 (Linear) > 1 (BatchNorm1d)",
        "0 (Linear) > 1 (BatchNorm1d) > 2 (ReLU)",
        "1 (BatchNorm1d) > 2 (ReLU) > -!",
    ]


def test_a_module_that_is_called_twice_is_two_calls():
    class Twice(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = torch.nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.norm(x))

    assert lines(trace(Twice(), x())) == [
        "input > norm (BatchNorm1d) > norm (BatchNorm1d)",
        "norm (BatchNorm1d) > norm (BatchNorm1d) > -!",
    ]


class Sizes(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return y.flatten(0, 1).exp().reshape_as(y) + torch.zeros_like(y)


def test_who_asks_for_sizes_alone_reads_nothing():
    model = Sizes()
    (output,) = trace(model, x(2, 3, 4)).calls_of(model.linear)[0].gives
    assert [str(reader) for reader in output.readers] == ["aten.flatten"]


class Scoped(torch.nn.Module):
    """Parts under another mode are graphs of their own in an exported program."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            y = F.relu(self.norm(x))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            z = self.linear(y)
        return z, {"relu": y}


def test_parts_under_another_mode():
    assert lines(trace(Scoped(), x())) == [
        "input > norm (BatchNorm1d) > aten.relu",
        "norm (BatchNorm1d) > aten.relu > linear (Linear)!",
        "aten.relu > linear (Linear) > -!",
    ]


def test_inputs_may_be_a_tensor_a_tuple_or_a_dict():
    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.identity = torch.nn.Identity()

        def forward(self, left: Tensor, right: Tensor, scale: float = 1.0) -> Tensor:
            return self.identity(left) * scale + right

    for inputs in ((x(), x()), [x(), x()], {"left": x(), "right": x()}, {"right": x(), "left": x(), "scale": 2.0}):
        assert [str(call) for call in trace(Two(), inputs).calls] == ["aten.mul", "aten.add"]


class Partly(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.ReLU())
        self.blocks = torch.nn.ModuleList(
            [torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), Branches(), torch.nn.ReLU(), Block())]
        )
        self.twice = torch.nn.Linear(4, 4)
        self.unused = torch.nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x) if x.sum() > -1e9 else x
        return self.twice(self.twice(x))


def test_of_a_model_that_depends_on_data_the_certain_parts_are_there():
    graph = trace(Partly(), x())
    assert lines(graph)[:7] == [
        "input > stem.0 (Linear) > stem.1 (BatchNorm1d)",
        "stem.0 (Linear) > stem.1 (BatchNorm1d) > stem.2 (ReLU)",
        "stem.1 (BatchNorm1d) > stem.2 (ReLU) > -!",
        "input > blocks.0.0 (Linear) > blocks.0.1 (BatchNorm1d)",
        "blocks.0.0 (Linear) > blocks.0.1 (BatchNorm1d) > -!",
        "input > blocks.0.3 (ReLU) > blocks.0.4.first (Linear) and aten.add in blocks.0.4",
        "blocks.0.3 (ReLU) > blocks.0.4.first (Linear) > blocks.0.4.norm1 (BatchNorm1d)",
    ]
    assert set(graph.uncertain) == {"", "blocks.0", "blocks.0.2", "twice"}
    assert "data-dependent" in graph.uncertain[""]
    assert graph.uncertain["twice"] == "it is called 2 times by code that does not trace"


@pytest.mark.parametrize("kind", [Block, Partly])
def test_nothing_moves(kind, capfd, recwarn):
    model = kind()
    before, rng = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    trace(model, x())
    assert torch.equal(torch.get_rng_state(), rng)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert capfd.readouterr() == ("", "")
    assert not [str(warning.message) for warning in recwarn if "jit.script" not in str(warning.message)]


def test_a_model_that_cannot_be_copied_or_run():
    class Locked(Block):
        def __init__(self) -> None:
            super().__init__()
            self.cache = torch.ones(2, requires_grad=True) * 2

    with pytest.raises(SurgeryError, match=r"cannot be copied.*Mend: give one that copy\.deepcopy takes"):
        trace(Locked(), x())
    with pytest.raises(SurgeryError, match="the model raises on the example inputs: RuntimeError"):
        trace(Block(), x(2, 5))
