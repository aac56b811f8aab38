"""The compiled CPU kernels, loaded where they were built: :data:`available` says whether, :data:`reason` why.

Loading is all that happens here. The binary registers its kernels with torch for the operators that
:mod:`batchnorm.ops.schema` defines; torch takes the two in either order.

Two environment variables are read once, when the library is imported:

- ``BATCHNORM_CPU_KERNELS=0`` leaves the kernels out, as if they had not been built.
- ``BATCHNORM_INSTRUCTION_SET`` (``avx512``, ``avx2``; ``neon`` on ARM) names the one that computes, not the best
  that the processor runs. One that is unknown, or that the processor does not run, is an error and not a warning:
  who asks for one wants the same bits, or the same speed, on every machine.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path

import torch

from ...errors import ArgumentError

__all__ = ["available", "reason"]

_NOT_BUILT = Path(__file__).with_name("not_built.txt")  # left by the build where it gave up
_OLDEST_TORCH = (2, 10)


def _load(environment: Mapping[str, str]) -> tuple[bool, str]:
    """Whether the kernels are there after this, and why, in one line."""
    wish = environment.get("BATCHNORM_CPU_KERNELS", "")
    if wish not in ("", "0", "1"):
        raise ArgumentError(
            f"the environment variable BATCHNORM_CPU_KERNELS is {wish!r}.",
            "0 leaves the compiled CPU kernels out; unset it, or 1, to use them.",
        )
    if wish == "0":
        return False, "turned off by BATCHNORM_CPU_KERNELS=0"
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < _OLDEST_TORCH:
        return False, f"torch {torch.__version__} is too old: they need 2.10 or later"
    try:
        binary = importlib.import_module(f"{__name__}._kernels")
    except ImportError as error:
        return False, _why_not(error)
    names = binary.instruction_sets()
    if not names:
        return False, "built, but this processor runs none of the instruction sets that they are built for"
    best = "the best that this processor runs of those that were built"
    wanted = environment.get("BATCHNORM_INSTRUCTION_SET", "")
    if wanted:
        if wanted not in names:
            raise ArgumentError(
                f"the environment variable BATCHNORM_INSTRUCTION_SET is {wanted!r}, which is not there:"
                f" this processor and this build have {', '.join(names)}.",
                "name one of these, or unset it: the best is taken then.",
            )
        binary.use(wanted)
        best = "as BATCHNORM_INSTRUCTION_SET says"
    return True, f"compiled; {binary.instruction_set()} instructions, {best}"


def _why_not(error: ImportError) -> str:
    # A module that is not there has no other error to tell: the build says why. One that is there says it itself.
    if not isinstance(error, ModuleNotFoundError):
        return f"built, but not loadable: {str(error).splitlines()[0]}"
    if _NOT_BUILT.is_file():
        return _NOT_BUILT.read_text(encoding="utf-8").strip()
    return "not built: these are sources that nobody installed; `pip install --no-build-isolation --editable .` builds"


available: bool
reason: str
available, reason = _load(os.environ)
