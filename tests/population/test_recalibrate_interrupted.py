"""Whatever stops ``recalibrate``, wherever, leaves the model as it was."""

from __future__ import annotations

import pytest
import torch

import batchnorm
from batchnorm import adapt, recalibrate
from population.recalibrate_tools import ORDERS, images, network, picture


class StopError(Exception):
    pass


def runs(order, tool, norm, stop_at, error, where):
    """Calls the tool; the ``stop_at``-th event at ``where`` raises. Gives the model, its picture before, and events."""
    model, x, events = network(norm), images(9), 0
    model[4].eval()

    def event():
        nonlocal events
        events += 1
        if events == stop_at:
            raise error

    class Loader:
        def __iter__(self):
            for part in x.split(4):
                if where == "loader":
                    event()
                yield part

    if where == "forward":
        model[2].register_forward_pre_hook(lambda *_: event())
    before = picture(model)
    progress = (lambda *_: event()) if where == "progress" else None
    arguments = {"prior": 3} if tool is adapt else {}
    try:
        tool(model, Loader(), order=order, progress=progress, **arguments)
        stopped = False
    except (StopError, KeyboardInterrupt):
        stopped = True
    return model, before, stopped


@pytest.mark.parametrize("where", ["loader", "forward", "progress"])
@pytest.mark.parametrize("error", [StopError(), KeyboardInterrupt()], ids=["exception", "interrupt"])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("norm", [torch.nn.BatchNorm2d, batchnorm.FusingBatchNorm2d])
def test_stopped_anywhere(order, norm, error, where):
    for stop_at in range(1, 12):
        model, before, stopped = runs(order, recalibrate, norm, stop_at, error, where)
        if not stopped:
            break
        assert picture(model) == before
    assert stop_at > 2
    assert not stopped
    assert picture(model) != before


def test_adapt_stopped():
    model, before, stopped = runs("one-pass", adapt, torch.nn.BatchNorm2d, 2, StopError(), "forward")
    assert stopped
    assert picture(model) == before


@pytest.mark.parametrize("nth", range(1, 8))
def test_interrupted_while_the_statistics_are_written(monkeypatch, nth):
    from batchnorm.population import target

    model, x, write, writes = network(), images(6), target._write, 0

    def interrupted(buffer, value):
        nonlocal writes
        writes += 1
        if writes == nth:
            raise KeyboardInterrupt
        write(buffer, value)

    before = picture(model)
    monkeypatch.setattr(target, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        recalibrate(model, x)
    assert picture(model) == before


@pytest.mark.parametrize("nth", range(1, 9))
def test_interrupted_while_modes_are_set_back(monkeypatch, nth):
    model, sets = network(), 0
    put = torch.nn.Module.__setattr__

    def interrupted(self, name, value):
        nonlocal sets
        if name == "training" and value is True:
            sets += 1
            if sets == nth:
                raise KeyboardInterrupt
        put(self, name, value)

    before = picture(model)
    monkeypatch.setattr(torch.nn.Module, "__setattr__", interrupted)
    try:
        recalibrate(model, images(6))
    except KeyboardInterrupt:
        assert picture(model) == before
    else:
        assert nth > sum(1 for _ in model.modules())
