"""Ctrl-C while ``torch.export`` is at work waits until it is done; handlers are the user's again."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from batchnorm.surgery.exported import uninterrupted
from batchnorm.surgery.trace import trace

STOPS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGALRM") if hasattr(signal, name)]


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {each: signal.getsignal(each) for each in STOPS}
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


class Stopped(BaseException):
    pass


def stops(*_: Any) -> None:
    raise Stopped


@pytest.mark.parametrize("number", STOPS)
def test_it_comes_when_the_export_is_done(monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    signal.signal(number, stops)
    export, done = torch.export.export, []

    def interrupted(*given: Any, **options: Any) -> Any:
        signal.raise_signal(number)
        signal.raise_signal(number)
        program = export(*given, **options)
        done.append(program)
        return program

    monkeypatch.setattr(torch.export, "export", interrupted)
    with pytest.raises(Stopped):
        trace(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), torch.randn(4, 2))
    assert len(done) == 1
    assert signal.getsignal(number) is stops


def test_also_after_an_exception() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def broken() -> None:
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            raise ValueError("no")

    with pytest.raises(KeyboardInterrupt):
        broken()
    with pytest.raises(ValueError, match="no"), uninterrupted():
        raise ValueError("no")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_that_does_not_raise_is_called_once() -> None:
    calls = []
    signal.signal(signal.SIGINT, lambda *given: calls.append(given[0]))
    with uninterrupted():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert calls == []
    assert calls == [signal.SIGINT]


def test_what_is_ignored_is_not_touched() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with uninterrupted():
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        signal.raise_signal(signal.SIGINT)


def test_another_thread_leaves_handlers_alone() -> None:
    before, seen = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with uninterrupted():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers by signals here")
def test_the_process_lives() -> None:
    # At random moments of an examination; without the shelter one in some dozen ended it by SIGABRT.
    script = """
        import random, signal, time, torch, batchnorm
        from torch import nn
        model = nn.Sequential(*(nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU()) for _ in range(6)))
        batches, draw, came = [torch.randn(32, 16)] * 2, random.Random(0), 0
        batchnorm.diagnose(model, batches=batches)
        start = time.perf_counter()
        batchnorm.diagnose(model, batches=batches)
        whole = time.perf_counter() - start
        def stop(*_): raise KeyboardInterrupt
        signal.signal(signal.SIGALRM, stop)
        for _ in range(60):
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.0005 + draw.random() * whole)
                batchnorm.diagnose(model, batches=batches)
            except KeyboardInterrupt:
                came += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        print(came)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 3
