"""``accumulate_statistics`` interrupted wherever it is: nothing has moved, and nothing stays behind."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
import torch

import batchnorm
from batchnorm import accumulate_statistics
from batchnorm.population import accumulate, sinks
from interrupts import interrupted_at
from population.recalibrate_tools import expected, images, picture

FILES = {accumulate.__file__, sinks.__file__}


def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.BatchNorm2d(2), batchnorm.BatchNorm2d(2), batchnorm.GhostBatchNorm2d(2))


def step(net, x):
    with accumulate_statistics(net):
        net(x)


def moves_once(net, x):
    """Whether a step does what it is to do: nothing of an earlier one is in its way."""
    seen = int(net[0].num_batches_tracked)
    net[0].momentum = 1.0
    with accumulate_statistics(net):
        for part in x.split(3):
            net(part)
    np.testing.assert_allclose(net[0].running_var, expected([x])[1], rtol=1e-5)
    assert [int(norm.num_batches_tracked) for norm in net] == [seen + 1] * 3


def test_at_any_line():
    net, x = model(), images(4)
    before = picture(net)
    for line in range(2000):
        with suppress(KeyboardInterrupt):
            with interrupted_at(line, FILES):
                step(net, x)
            break
        assert picture(net) == before, line
    assert line > 100
    assert picture(net) != before
    moves_once(net, images(6))


def test_at_any_line_of_a_step_that_fails():
    net, x = model(), images(4)
    before = picture(net)
    for line in range(2000):
        either = pytest.raises((KeyboardInterrupt, KeyError))
        with either as raised, interrupted_at(line, FILES), accumulate_statistics(net):
            net(x)
            raise KeyError
        assert picture(net) == before, line
        assert torch.is_grad_enabled(), line
        if raised.type is KeyError:
            break
    assert line > 60


def test_what_two_interrupts_leave_is_cleaned_by_the_next_one(monkeypatch):
    net, x = model(), images(6)
    before = picture(net)

    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), accumulate_statistics(net):  # noqa: PT012
        net(x)
        # By the function: where doctests are collected too, there may be another module of that name.
        monkeypatch.setitem(accumulate_statistics.__wrapped__.__globals__, "remove", interrupt)
    assert picture(net)[1] != before[1]
    assert picture(net)[0] == before[0]
    monkeypatch.undo()
    moves_once(net, x)
    net[0].momentum = 0.1
    assert picture(net)[1] == before[1]


class Interrupted(torch.nn.BatchNorm2d):
    """Is interrupted when its work is done, which torch calls no hooks for."""

    def forward(self, x):
        y = super().forward(x)
        if x.mean() > 50:
            raise KeyboardInterrupt
        return y


def test_a_call_that_was_interrupted_does_not_count_when_the_user_goes_on():
    layer, x = Interrupted(2, momentum=1.0), images(6)
    with accumulate_statistics(layer):
        layer(x[:3])
        with pytest.raises(KeyboardInterrupt):
            layer(x + 100)
        layer(x[3:])
    np.testing.assert_allclose(layer.running_var, expected([x])[1], rtol=1e-5)


def test_an_output_that_waits_does_not_move_them_after_an_exception():
    layer, x = batchnorm.FusingBatchNorm2d(2), images(6)
    before, outputs = picture(layer), []
    with pytest.raises(KeyError), accumulate_statistics(layer):  # noqa: PT012
        outputs.append(layer(x))
        raise KeyError
    assert (torch.relu(outputs[0]) >= 0).all()
    assert picture(layer) == before
