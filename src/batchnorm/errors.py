"""What this library raises: one family, and each message says what, where and how to mend it.

Every kind is also the built-in exception that torch raises in the same situation, so code written for
``torch.nn.BatchNorm*`` catches ours unchanged.
"""

from __future__ import annotations

import sys

import torch

__all__ = [
    "ArgumentError",
    "BatchNormError",
    "DeviceError",
    "DifferentResultError",
    "DtypeError",
    "NotFittedError",
    "ShapeError",
    "SurgeryError",
    "TooFewValuesError",
]


class BatchNormError(Exception):
    """The base of everything this library raises on purpose.

    Args:
        problem: What is wrong, with the shapes and values at hand.
        mend: What to do about it, as one sentence or one line of code.

    The layer at fault is found by walking up the call stack to the innermost and the outermost running
    ``torch.nn.Module``; its path in the outermost one is put before the message. That costs nothing until
    something fails, and no layer has to know its own name.

    Attributes:
        problem: As given.
        mend: As given.
        layer: The path and class of the layer, for example ``"features.3 (BatchNorm2d)"``; empty outside one.
    """

    def __init__(self, problem: str, mend: str = "") -> None:
        self.problem, self.mend = problem, mend
        self.layer = _running_layer()
        where = f"{self.layer}: " if self.layer else ""
        super().__init__(f"{where}{problem}" + (f" Mend: {mend}" if mend else ""))

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process borders (data loaders, the study's workers); the path was found where it was
        # raised and must not be looked for again where it is unpickled.
        return _rebuild, (type(self), self.args, self.__dict__)


class ShapeError(BatchNormError, ValueError, RuntimeError):
    """A tensor has the wrong number of dimensions or the wrong size.

    torch raises ``ValueError`` for the dimensions and ``RuntimeError`` for the sizes; this is both.
    """


class TooFewValuesError(BatchNormError, ValueError):
    """One value a channel: its variance is not defined, and normalising it would give zeros."""


class DtypeError(BatchNormError, TypeError, RuntimeError):
    """A tensor has a dtype that cannot take part (torch raises ``RuntimeError`` here)."""


class DeviceError(BatchNormError, RuntimeError):
    """Tensors that belong together lie on different devices."""


class ArgumentError(BatchNormError, ValueError, RuntimeError):
    """An argument has a value that means nothing, or two arguments contradict each other."""


class NotFittedError(BatchNormError, RuntimeError):
    """Statistics were asked for before any data was seen."""


class SurgeryError(BatchNormError, RuntimeError):
    """A model cannot be rewritten, or would compute something else; the model given is as it was."""


class DifferentResultError(SurgeryError):
    """A rewritten model computes something else than the model given."""


def _rebuild(kind: type[BatchNormError], args: tuple[object, ...], state: dict[str, object]) -> BatchNormError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


def _running_layer() -> str:
    if torch.compiler.is_compiling():
        return ""  # a traced call has no stack to walk
    innermost = outermost = None
    frame = sys._getframe(2)
    while frame is not None:
        owner = frame.f_locals.get("self")
        # `_call_impl` is on the stack once for each module whose forward runs.
        if isinstance(owner, torch.nn.Module) and frame.f_code.co_name in ("forward", "_call_impl"):
            innermost = innermost if innermost is not None else owner
            outermost = owner
        frame = frame.f_back  # type: ignore[assignment]
    if innermost is None or outermost is None:
        return ""
    for path, module in outermost.named_modules():
        if module is innermost and path:
            return f"{path} ({type(innermost).__name__})"
    return type(innermost).__name__
