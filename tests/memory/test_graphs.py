"""``lean`` where graphs are recorded and functions transformed."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from batchnorm.memory import Report, lean
from memory.lean_tools import Model, assert_equal, assert_over, gradients, plain


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 4, 5, 5)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_inside_a_compiled_function_it_does_nothing(model: Model, x: Tensor, backend: str) -> None:
    expected = gradients(model, x, plain)

    def forward(model: nn.Module, x: Tensor) -> Tensor:
        with lean():
            return model(x)  # type: ignore[no-any-return]

    assert_equal(gradients(model, x, torch.compile(forward, fullgraph=True, backend=backend)), expected)

    @torch.compile(fullgraph=True, backend=backend)
    def reported(x: Tensor) -> tuple[Tensor, object]:
        with lean(report=True) as report:
            y = model(x)
        return y, report

    report = reported(x)[1]
    assert isinstance(report, Report)
    assert report.recipes == 0
    assert "torch.compile" in str(report)
    assert_over()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_around_a_compiled_function_it_has_nothing_to_do(model: Model, x: Tensor, backend: str) -> None:
    expected = gradients(model, x, plain)
    reports = []

    def forward(model: nn.Module, x: Tensor) -> Tensor:
        compiled = torch.compile(model, fullgraph=True, backend=backend)
        with lean(report=True) as report:
            loss: Tensor = compiled(x)
        reports.append(report)
        return loss

    assert_equal(gradients(model, x, forward), expected)
    assert reports[0].recipes == 0
    assert "no norm of this library ran" in str(reports[0])


def test_transforms(model: Model, x: Tensor) -> None:
    reports = []

    def function(x: Tensor) -> Tensor:
        with lean(report=True) as report:
            reports.append(report)
            return model.eval()(x)  # type: ignore[no-any-return]

    torch.testing.assert_close(torch.func.grad(function)(x), torch.func.grad(model.eval())(x))
    assert reports[0].recipes == 0
    assert "saved tensor hooks" in str(reports[0])
    with lean():
        values = torch.vmap(model)(x.unsqueeze(0))
        _, tangent = torch.func.jvp(model, (x,), (x,))
        # torch refuses, in its own words: docs/lean.md says so.
        with pytest.raises(RuntimeError, match="saved tensor hooks"):
            torch.func.grad(model)(x)
    torch.testing.assert_close(values, model(x).unsqueeze(0))
    torch.testing.assert_close(tangent, torch.func.jvp(model, (x,), (x,))[1])
    values.sum().backward()
    assert_over()


def test_per_sample_gradients_of_a_lean_forward_pass(model: Model, x: Tensor) -> None:
    """A backward pass in batches, by vmap."""
    inputs = x.clone().requires_grad_()
    found = []
    for is_lean in (True, False):
        with lean() if is_lean else nullcontext():
            y = model.middle(model.first(inputs)).sum((1, 2, 3))
        directions = torch.eye(len(y))
        found.append(torch.vmap(lambda v, y=y: torch.autograd.grad(y, inputs, v, retain_graph=True)[0])(directions))
        torch.testing.assert_close(
            found[-1], torch.stack([torch.autograd.grad(y, inputs, v, retain_graph=True)[0] for v in directions])
        )
    torch.testing.assert_close(*found)


def test_a_trace_is_the_one_without(model: Model, x: Tensor) -> None:
    """What ``lean`` asks of tensors must not become part of the graph."""
    model.eval()
    expected = torch.jit.trace(model, x)
    with lean():
        found = torch.jit.trace(model, x)
    assert str(found.graph).count("\n") == str(expected.graph).count("\n")
    torch.testing.assert_close(found(x), expected(x))


def test_tensors_without_memory() -> None:
    model, x = Model().to("meta"), torch.empty(3, 4, 5, 5, device="meta")
    with lean(report=True) as report:
        loss = model(x)
    loss.backward()
    assert report is not None
    assert report.recipes == 3


def test_fake_tensors_are_no_memory(x: Tensor) -> None:
    with FakeTensorMode(), lean(report=True) as report:
        Model()(torch.empty(3, 4, 5, 5)).backward()
    assert report is not None
    assert (report.recipes, report.kept_bytes_without) == (0, 0)


def test_what_a_transform_left_behind_is_kept_as_it_is(model: Model, x: Tensor) -> None:
    left = []

    def function(x: Tensor) -> Tensor:
        left.append(x)
        return x.sin().sum()

    torch.func.grad(function)(x)
    with lean():
        loss = model(left[0])
    loss.backward()
