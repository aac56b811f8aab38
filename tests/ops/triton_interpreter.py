"""Triton's interpreter, mended: it rounds as a GPU does, and takes a sixth of the time."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter

__all__ = ["is_interpreted", "mended"]

is_interpreted = triton.knobs.runtime.interpret

_cast = interpreter.InterpreterBuilder.cast_impl


def _converted(self: Any, source: Any, dtype: Any) -> Any:
    """From bfloat16 and to it: the interpreter cuts off instead of rounding, and makes nothing of float64."""
    if source.dtype.scalar == tl.bfloat16 and dtype.scalar == tl.float32:
        return interpreter.TensorHandle((source.data.astype(np.uint32) << 16).view(np.float32), tl.float32)
    if dtype.scalar != tl.bfloat16:
        return _cast(self, source, dtype)
    values = torch.from_numpy(np.array(source.data, np.float32)).bfloat16()
    return interpreter.TensorHandle(values.view(torch.int16).numpy().view(np.uint16), tl.bfloat16)


@contextmanager
def mended(overflows: bool = False) -> Iterator[None]:
    """Have kernels interpreted so in here.

    The time goes into patching Triton's language anew for every function that is called, and into looking at every
    integer for overflows, which is left out but with ``overflows``.
    """
    builder = interpreter.interpreter_builder
    options = dataclasses.replace(builder.options, sanitize_overflow=overflows)
    nothing = SimpleNamespace(restore=lambda: None)
    with ExitStack() as stack:
        scope = interpreter._patch_lang(SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
        stack.callback(scope.restore)
        for owner, name, value in (
            (interpreter, "_patch_lang", lambda function: nothing),
            (interpreter.InterpreterBuilder, "cast_impl", _converted),
            (builder, "options", options),
            # NumPy makes no number of an array of one value any more, as Triton 3.6 would have it.
            (tl.tensor, "__index__", lambda self: int(self.handle.data.item())),
        ):
            stack.enter_context(patch.object(owner, name, value))
        stack.enter_context(np.errstate(all="ignore"))  # a GPU warns nobody of an infinity
        yield
