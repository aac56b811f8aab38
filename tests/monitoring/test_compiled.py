"""Compiled models: observed steps run uncompiled, and nothing is compiled anew for them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import batchnorm
from monitoring.networks import plain, train


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Counting:
    """A compiler that runs what it is given, and counts how often it was asked to compile and how often that ran."""

    def __init__(self):
        self.compiled = self.ran = 0

    def __call__(self, graph, inputs):
        self.compiled += 1

        def run(*arguments):
            self.ran += 1
            return graph(*arguments)

        return run


def compiled(model, how):
    backend = Counting()
    if how == "in place":
        model.compile(backend=backend, fullgraph=True)
        return model, backend
    if how == "inside":
        model[1] = torch.compile(model[1], backend=backend, fullgraph=True)
        return model, backend
    return torch.compile(model, backend=backend, fullgraph=True), backend


@pytest.mark.parametrize("how", ["around", "in place", "inside"])
def test_observed_steps_run_as_written(how):
    model, backend = compiled(plain(), how)
    train(model, 2)
    before, graphs = backend.compiled, backend.ran // 2  # torch makes two graphs of a Sequential compiled in place
    assert before == graphs >= 1
    call, records = model._compiled_call_impl, []
    with batchnorm.monitor(model, records.append, every=3) as handle:
        train(model, 7)
        assert handle.step == 7
    assert model._compiled_call_impl is call
    assert [record.step for record in records] == [0, 3, 6]
    assert all(set(record.layers) == {"0.norm", "1.norm"} for record in records)
    assert backend.ran == (2 + 4) * graphs
    assert backend.compiled == before
    train(model, 1)
    assert (backend.compiled, backend.ran) == (before, 7 * graphs)


def test_first_compiled_while_monitored():
    model, backend = compiled(plain(), "around")
    with batchnorm.monitor(model, lambda record: None, every=2):
        train(model, 4)
    assert (backend.compiled, backend.ran) == (1, 2)


def test_two_monitors_leave_compiling_on():
    model, backend = compiled(plain(), "around")
    with batchnorm.monitor(model, lambda record: None, every=2), batchnorm.monitor(model, lambda record: None, every=2):
        train(model, 4)
        assert backend.ran == 2


def test_a_compiled_model_that_raises_leaves_compiling_on():
    class Fails(nn.Module):
        def forward(self, x):
            raise KeyboardInterrupt

    model, backend = compiled(plain(), "around")
    handle = batchnorm.monitor(nn.Sequential(nn.BatchNorm2d(4), Fails()), lambda record: None)
    with pytest.raises(KeyboardInterrupt):
        handle._model(torch.randn(2, 4, 3, 3))
    handle.close()
    train(model, 1)
    assert backend.ran == 1


def test_a_monitor_inside_compiled_code_says_so():
    inner = plain()
    with pytest.warns(UserWarning, match="ran no training step"), batchnorm.monitor(inner, print):
        train(torch.compile(inner, backend=Counting(), fullgraph=True), 2)
