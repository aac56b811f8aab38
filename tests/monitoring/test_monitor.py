"""Which passes are steps, which of them are observed, and that the model and its training are as without it."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import threading
import warnings
from contextlib import suppress

import pytest
import torch
from torch import nn

import batchnorm
from batchnorm.errors import ArgumentError
from batchnorm.monitoring import monitor as module
from batchnorm.monitoring import observation, values, writing
from interrupts import interrupted_at
from monitoring.networks import NETWORKS, hooks_of, images, plain, train

MONITOR = sys.modules["batchnorm.monitoring.monitor"]
FILES = {MONITOR.__file__, observation.__file__, values.__file__, writing.__file__}


@pytest.mark.parametrize("name", NETWORKS)
def test_training_is_the_same_to_the_last_bit(name):
    pair = []
    for _ in range(2):
        torch.manual_seed(0)
        pair.append(NETWORKS[name]())
        pair[-1](images())  # a lazy norm's parameters
    model, other = pair
    train(model, 4)
    before, records = hooks_of(other), []
    with batchnorm.monitor(other, records.append, every=1):
        train(other, 4)
    assert hooks_of(other) == before
    assert [record.step for record in records] == [0, 1, 2, 3]
    assert set(records[0].layers) == {path for path, each in other.named_modules() if hasattr(each, "eps")}
    for key, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key


def test_every_so_many_steps():
    model, steps = plain(), []
    with batchnorm.monitor(model, lambda record: steps.append(record.step), every=3) as handle:
        train(model, 7)
        assert handle.step == 7
        assert steps == [0, 3]  # the record of 6 waits for its gradients
        handle.step = 100
        train(model, 3)
        handle.flush()
        assert steps == [0, 3, 6, 102]
    assert steps == [0, 3, 6, 102]


def test_what_is_no_step():
    model, steps = plain(), []
    with batchnorm.monitor(model, lambda record: steps.append(record.step), every=1) as handle:
        with torch.no_grad():
            model(images())
        model.eval()
        model(images()).sum().backward()
        assert handle.step == 0
        torch.utils.checkpoint.checkpoint(
            model.train(), images().requires_grad_(), use_reentrant=False
        ).sum().backward()
        assert handle.step == 1
    assert steps == [0]


def test_passes_of_one_step():
    model, records = plain(), []
    with batchnorm.monitor(model, records.append, every=2, passes_per_step=3) as handle:
        for step in range(4):
            outputs = [model(images() * (10 if micro else 1)) for micro in range(3)]
            sum(output.sum() for output in outputs).backward()
            assert handle.step == step + 1
    assert [record.step for record in records] == [0, 2]
    for record in records:
        first = record.layers["0.norm"]
        assert first["largest_variance"] < 5  # of the first pass alone
        assert first["gradient_input"] > 0  # though it came after the others


def test_between_observed_steps_the_norms_have_no_hooks():
    model = plain()
    norms = [each for each in model.modules() if isinstance(each, nn.BatchNorm2d)]
    seen = []
    model[1].conv.register_forward_hook(
        lambda *_: seen.append([bool(each._forward_pre_hooks or each._forward_hooks) for each in norms])
    )
    with batchnorm.monitor(model, lambda record: None, every=2):
        for _ in range(3):
            loss = model(images()).sum()
            assert not any(each._forward_pre_hooks or each._forward_hooks for each in norms)
            loss.backward()
    assert seen == [[True, True], [False, False], [True, True]]


def test_copies_and_pickles_are_left_alone(tmp_path):
    """They neither write nor drag the writer along, and who loads them does not need this library."""
    model, steps = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)), []
    held = open(tmp_path / "held", "w")  # noqa: SIM115 - what cannot be pickled

    def callback(record, _held=held):
        steps.append(record.step)

    handle = batchnorm.monitor(model, callback, every=1)
    with held:
        loaded = pickle.loads(pickle.dumps(model))
        for other in (copy.deepcopy(model), loaded):
            train(other, 2)
        torch.save(model, tmp_path / "model.pt")
    handle.close()
    assert steps == []
    code = (
        "import sys, torch; sys.modules['batchnorm'] = None\n"
        f"model = torch.load({str(tmp_path / 'model.pt')!r}, weights_only=False)\n"
        "print(model(torch.randn(2, 4, 3, 3)).shape)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout == "torch.Size([2, 4, 3, 3])\n"


class Error(Exception):
    pass


class Fails(nn.Module):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error, self.on = error, True

    def forward(self, x):
        if self.on:
            raise self.error
        return x


@pytest.mark.parametrize("error", [Error(), KeyboardInterrupt()])
def test_a_model_that_raises(error):
    model, steps = nn.Sequential(nn.BatchNorm2d(4), Fails(error), nn.BatchNorm2d(4)), []
    before = hooks_of(model)
    with (
        suppress(Error, KeyboardInterrupt),
        batchnorm.monitor(model, lambda record: steps.append(list(record.layers)), every=1),
    ):
        model(images())
    assert hooks_of(model) == before
    assert steps == [["0"]]
    # And where the user goes on after it.
    handle = batchnorm.monitor(model, lambda record: steps.append(list(record.layers)), every=2)
    with pytest.raises(type(error)):
        model(images())
    # No hook of torch's is called after an interrupt: the next call of the model takes them out.
    assert bool(model[0]._forward_pre_hooks) is not isinstance(error, Exception)
    model[1].on = False
    model.eval()(images())
    assert not model[0]._forward_pre_hooks
    model.train()(images()).sum().backward()
    handle.close()
    assert steps == [["0"], ["0"]]


def fails(record):
    raise Error


def test_a_writer_that_raises():
    model = plain()
    before = hooks_of(model)
    with pytest.raises(Error), batchnorm.monitor(model, fails, every=1):
        train(model, 2)
    assert hooks_of(model) == before


def test_a_writer_that_raises_hides_no_other_error():
    model = nn.Sequential(nn.BatchNorm2d(4), Fails(ZeroDivisionError()))
    before = hooks_of(model)
    with (
        pytest.warns(UserWarning, match="not written: Error"),
        pytest.raises(ZeroDivisionError),
        batchnorm.monitor(model, fails),
    ):
        model(images())
    assert hooks_of(model) == before


def test_who_is_told_of_trouble_may_end_the_training():
    model = plain()
    model[0].norm.weight.data.fill_(float("nan"))
    with pytest.raises(Error), batchnorm.monitor(model, lambda record: None, on_trouble=fails):
        train(model, 2)


# Before the first line of __exit__, as in __enter__, Python itself leaves nobody to put things back.
NOBODY = ("__enter__", "__exit__")


def test_an_interrupt_at_any_line():
    model = nn.Sequential(nn.BatchNorm2d(4))
    before = hooks_of(model)

    def work():
        with batchnorm.monitor(model, lambda record: None, every=1):
            train(model, 2)

    line = 0
    while True:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                with interrupted_at(line, FILES, but=NOBODY):
                    work()
            except KeyboardInterrupt:
                assert hooks_of(model) == before, line
                line += 3
                continue
        break
    assert line > 100


def test_two_monitors_and_closing_twice():
    model, one, other = plain(), [], []
    first = batchnorm.monitor(model, lambda record: one.append(record.step), every=1)
    second = batchnorm.monitor(model, lambda record: other.append(record.step), every=2)
    train(model, 3)
    first.close()
    first.close()
    train(model, 2)
    second.close()
    assert (one, other) == ([0, 1, 2], [0, 2, 4])


def test_a_callback_needs_no_with_and_no_handle():
    model, steps = plain(), []
    batchnorm.monitor(model, lambda record: steps.append(record.step), every=2)
    train(model, 4)
    assert steps == [0, 2]


@pytest.mark.parametrize("by", ["writer", "on_trouble"])
def test_who_takes_a_record_may_close_it(by):
    model, records = plain(), []
    model[0].norm.weight.data.fill_(float("nan"))
    before = hooks_of(model)

    def take(_):
        records.append(1)
        handle.close()

    takes = {"writer": take} if by == "writer" else {"writer": lambda record: None, "on_trouble": take}
    handle = batchnorm.monitor(model, every=1, **takes)
    train(model, 3)
    assert hooks_of(model) == before
    assert not handle._watcher.watching  # so code is compiled again
    assert records == [1]


def test_one_of_several_threads_is_watched():
    model, records, errors = plain(), [], []
    before, reached = hooks_of(model), threading.Barrier(4)

    def work():
        try:
            for _ in range(10):
                reached.wait(60)
                model(images()).square().mean().backward()
            reached.wait(60)  # who ends early would leave the last step to another
        except BaseException as error:  # it would be lost in its thread
            errors.append(error)

    with batchnorm.monitor(model, records.append, every=1) as handle:
        for _ in range(2):
            threads = [threading.Thread(target=work) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        train(model, 1)
    assert errors == []
    # Of each four one, and then, for it has ended, this one.
    assert handle.step == len(records) == 21
    assert all(len(record.layers) == 2 for record in records)
    assert hooks_of(model) == before


def test_under_transforms_nothing_is_looked_at():
    model, steps = nn.Sequential(nn.BatchNorm2d(4, track_running_stats=False)), []
    with pytest.warns(UserWarning, match="no batch norm was called"), batchnorm.monitor(model, steps.append):
        torch.func.grad(lambda x: model(x).square().sum())(images())
    assert steps == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"every": 0}, "every=0"),
        ({"every": 2.5}, r"every=2\.5"),
        ({"every": float("nan")}, "every=nan"),
        ({"passes_per_step": 0}, "passes_per_step=0"),
        ({"writer": 3}, "int has no add_scalar"),
        ({"model": nn.Linear(2, 2)}, "no batch norm"),
        ({"model": nn.BatchNorm1d(2)}, "a batch norm itself"),
        ({"model": nn.DataParallel(nn.BatchNorm1d(2))}, "DataParallel"),
        ({"model": torch.jit.script(nn.Sequential(nn.BatchNorm1d(2)))}, "cannot be watched"),
    ],
)
def test_what_means_nothing_is_refused(change, message):
    with pytest.raises(ArgumentError, match=message):
        batchnorm.monitor(**{"model": plain(), "writer": print, **change})


def test_a_model_that_never_trains_is_told_of():
    with pytest.warns(UserWarning, match="ran no training step"), batchnorm.monitor(plain(), print):
        pass


def test_the_first_process_writes(monkeypatch):
    assert module.__module__ == "batchnorm.monitoring.monitor"
    for rank, steps, all_ranks in ((0, [0, 1], False), (1, [], False), (1, [0, 1], True)):
        monkeypatch.setattr(MONITOR.dist, "is_initialized", lambda: True)
        monkeypatch.setattr(MONITOR.dist, "get_rank", lambda rank=rank: rank)
        model, found = nn.Sequential(nn.BatchNorm2d(4)), []
        with batchnorm.monitor(model, lambda r, found=found: found.append(r.step), every=1, all_ranks=all_ranks):
            train(model, 2)
        assert found == steps
