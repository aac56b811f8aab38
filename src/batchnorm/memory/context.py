"""``lean`` as it is used: around a block, or around a function."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable
from types import TracebackType
from typing import ParamSpec, TypeVar

import torch

from ..errors import ArgumentError
from .report import Counts, Report
from .session import OTHER_HOOKS, Session, hooks_on_top, sessions

__all__ = ["Lean", "lean"]

P = ParamSpec("P")
R = TypeVar("R")

_COMPILED = "torch.compile traces this: lean does nothing in a graph"


class Lean:
    """What :func:`lean` returns: a context manager, which one thread at a time can enter, and a decorator."""

    def __init__(self, report: bool) -> None:
        self._wants_report = report
        self._entered: list[tuple[Session | None, Counts | None, bool]] = []

    def __enter__(self) -> Report | None:
        counts = Counts(Report()) if self._wants_report else None
        session, reason = self._session()
        begins = session is not None and threading.get_ident() not in sessions
        if session is not None and begins:
            try:
                session.open()
            except RuntimeError as error:  # torch's words: a torch.func transform, for one, allows no hooks
                session, reason, begins = None, f"{str(error).splitlines()[0]} Here lean does nothing", False
        if counts is not None:
            if session is None:
                counts.report.because(reason)
            else:
                session.counts.append(counts)
        self._entered.append((session, counts, begins))
        return None if counts is None else counts.report

    def _session(self) -> tuple[Session | None, str]:
        """Where this block takes part, or why it does not."""
        if torch.compiler.is_compiling():
            return None, _COMPILED
        session = sessions.get(threading.get_ident())
        if session is not None and session.is_left():
            session.drop()
        elif session is not None:
            return session, ""
        if hooks_on_top() is not None:
            return None, OTHER_HOOKS
        return Session(self), ""

    def is_in(self, session: Session) -> bool:
        """Whether it is inside a block that belongs to the session."""
        return session in [entered for entered, _, _ in self._entered]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        session, counts, begins = self._entered.pop()
        try:
            if counts is not None:
                counts.close()
                if session is not None:
                    session.counts.remove(counts)
        finally:
            if session is not None and begins:
                session.close()

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """``function``, each call of which is such a block."""
        if self._wants_report:
            raise ArgumentError(
                "a function under lean(report=True) has no way to hand out its report.",
                "use `with lean(report=True) as report:` around the call.",
            )

        if (
            inspect.isgeneratorfunction(function)
            or inspect.iscoroutinefunction(function)
            or inspect.isasyncgenfunction(function)
        ):
            raise ArgumentError(
                f"{function.__qualname__} is a generator or coroutine function: a call of it only makes the generator "
                "or coroutine, and lean() would be over before anything in it runs.",
                "use `with lean():` in it, around the forward pass.",
            )

        @functools.wraps(function)
        def lean_function(*arguments: P.args, **named: P.kwargs) -> R:
            with Lean(False):
                return function(*arguments, **named)

        return lean_function


def lean(report: bool = False) -> Lean:
    r"""Around a forward pass: whatever follows a norm keeps no copy of the norm's output for the backward pass.

    A layer of this library keeps its input x for its own backward pass, and what follows it, a convolution for example,
    would keep the layer's output as well. In this block a recipe takes the output's place, and the backward pass
    computes ``activation((x − mean) / √(var + eps) · weight + bias + residual)`` again, from the moments of the forward
    pass: gradients are the same, to the last bit where the compiled kernels serve. An output is kept as it is where a
    recipe would save nothing: no gradient flows through the norm, nothing else keeps the residual, or the residual's
    own recipe is at the end of a chain of four.

    Args:
        report: Whether the block gives a :class:`Report`, which says what is kept with and without.

    Returns:
        A context manager, or a decorator of what runs the forward pass. The backward pass may come later.

    Raises:
        ArgumentError: As a decorator: ``report=True``, or of a generator or coroutine function.
        RuntimeError: In the backward pass, as autograd raises it: what is needed has been modified in place.

    It does nothing inside ``torch.compile``, under other hooks for saved tensors, as inside a non-reentrant checkpoint,
    and where torch allows no hooks; the report says so. Other threads are left alone.

    Example:
        >>> from batchnorm import BatchNormAct2d
        >>> norm, conv = BatchNormAct2d(8), torch.nn.Conv2d(8, 8, 1)
        >>> x = torch.randn(4, 8, 16, 16, requires_grad=True)
        >>> with lean(report=True) as report:
        ...     loss = conv(norm(x.sin())).sum()
        >>> loss.backward()
        >>> report.recipes, report.kept_bytes, report.kept_bytes_without
        (1, 32768, 65536)
    """
    return Lean(report)
