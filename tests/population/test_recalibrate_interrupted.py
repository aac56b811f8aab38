"""Whatever stops ``recalibrate``, wherever, leaves the model as it was."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch

import batchnorm
from batchnorm import adapt, population, recalibrate
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


@pytest.mark.parametrize("order", ORDERS)
def test_interrupted_at_any_line(order):
    folder = str(Path(population.__file__).parent)
    nn, x = torch.nn, torch.randn(4, 2)

    def traced(at):
        """Interrupts at the first or the last time that a line is reached: (file, line, how often)."""
        model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(), nn.BatchNorm1d(2))
        model[1].eval()
        before, reached, kept = picture(model), Counter(), sys.gettrace()

        def line(frame, event, _):
            if event == "line":
                where = (frame.f_code.co_filename, frame.f_lineno)
                reached[where] += 1
                if (*where, reached[where]) == at:
                    raise KeyboardInterrupt
            return line

        sys.settrace(lambda frame, *_: line if frame.f_code.co_filename.startswith(folder) else None)
        try:
            recalibrate(model, x.split(2), order=order)
        except KeyboardInterrupt:
            stopped = True
        else:
            stopped = False
        finally:
            sys.settrace(kept)
        assert stopped == (at is not None)
        assert (picture(model) == before) == stopped, at
        assert torch.is_grad_enabled(), at
        return reached

    all_lines = traced(None)
    assert len(all_lines) > 150
    for where, times in all_lines.items():
        for time in {1, times}:
            traced((*where, time))


@pytest.mark.parametrize("order", ORDERS)
def test_a_warning_that_is_an_error_leaves_the_model_as_it_was(order):
    model = torch.nn.ModuleDict({"body": network(), "head": torch.nn.BatchNorm1d(3)})
    before = picture(model)
    with pytest.warns(UserWarning, match="no batch reached head") as warned:
        recalibrate(model, images(5), forward=lambda model, batch: model["body"](batch), order=order)
    assert warned[0].filename == __file__
    assert picture(model) != before
    before = picture(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="no batch reached head"):
            recalibrate(model, images(5) + 3, forward=lambda model, batch: model["body"](batch), order=order)
    assert picture(model) == before
