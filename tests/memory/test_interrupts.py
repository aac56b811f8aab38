"""``lean`` and a Ctrl-C just as a block begins or ends."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from types import FrameType

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from batchnorm.memory import context, lean, session
from batchnorm.memory.session import hooks_on_top, sessions
from batchnorm.ops.observers import observers
from memory.lean_tools import Model, assert_over


def _interrupted(at: int, is_nested: bool, other: bool) -> bool:
    """A block with an interrupt before the so-maniest instruction of opening and closing; whether there are so many."""
    files = {context.__file__, session.__file__, torch.autograd.graph.__file__}
    count = 0

    def trace(frame: FrameType, event: str, argument: object) -> Callable[..., object] | None:
        nonlocal count
        if frame.f_code.co_filename not in files:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event in ("call", "opcode"):
            count += 1
            if count == at:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        with lean(report=True):
            with lean(report=True) if is_nested else nullcontext():
                pass
            if other:
                raise ValueError
    except ValueError:
        sys.settrace(before)
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.mark.parametrize("is_nested", [True, False])
@pytest.mark.parametrize("other", [True, False])
def test_an_interrupt_at_a_block_s_edge_is_mended_by_the_next_block(is_nested: bool, other: bool) -> None:
    """Wherever it comes: hooks for good would make every later block one that is nested."""
    at, left = 1, 0
    while _interrupted(at, is_nested, other):
        left += bool(sessions or observers or hooks_on_top())
        with lean(report=True) as report:
            pass
        assert_over()
        assert report is not None
        assert "other hooks" not in str(report)
        at += 1
    assert at > 50
    assert left > 0  # or there is nothing to mend
    assert_over()


def test_an_interrupt_while_closing_is_mended_though_a_traceback_holds_the_block() -> None:
    opener = lean()
    opener.__enter__()
    opener._entered.pop()  # as __exit__ does first
    with lean():
        assert len(sessions) == 1
    assert_over()


def test_a_block_that_was_left_under_other_hooks_waits_until_they_are_gone() -> None:
    model, x = Model(), torch.randn(3, 4, 5, 5)
    opener = lean()
    opener.__enter__()
    with saved_tensors_hooks(lambda t: t, lambda t: t):
        del opener
        with lean(report=True) as report:
            model(x)
        assert "other hooks" in str(report)
    with lean(report=True) as report:
        model(x)
    assert report is not None
    assert report.recipes == 3
    assert_over()
