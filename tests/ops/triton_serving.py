"""The Triton kernels serve CPU tensors in here, in Triton's interpreter, and in tiles that are small."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch

from batchnorm.ops import dispatch, ranks, recorded, schema, synced
from batchnorm.ops.triton import compute, kernels, layout, passes, tiles
from batchnorm.ops.triton.tiles import Tile
from batchnorm.population import sinks
from ops.triton_interpreter import mended

__all__ = ["serving", "split", "wide"]


@contextmanager
def serving() -> Iterator[None]:
    """Layers and operators find the Triton kernels for tensors on the CPU, as they do for those on a GPU."""
    library = torch.library.Library("batchnorm", "IMPL")
    with ExitStack() as stack:
        stack.callback(library._destroy)
        for owner, name, value in (
            (dispatch, "_compiled", kernels),
            (schema, "primitives", lambda input: compute),
            (schema, "python_kernels", lambda input, mask, evaluation=False: compute),
            (schema, "running_mover", lambda mean, direct: compute.update_running),
            (recorded, "running_mover", lambda mean, direct: kernels.update_running),
            (synced, "rank_kernels", lambda input: ranks if torch.compiler.is_compiling() else kernels),
            (sinks, "running_mover", lambda mean, direct: kernels.update_running),
        ):
            stack.enter_context(patch.object(owner, name, value))
        # The compiled CPU kernels have registered for the operators: these come before them, until the library goes.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Warning only once for all operators")
            for signature, implementation in zip(schema.SCHEMAS, schema._IMPLEMENTATIONS[0], strict=True):
                library.impl(signature[: signature.index("(")], implementation, "CPU")
        stack.enter_context(mended())
        yield


@contextmanager
def split(values: int = 64, programs: int = 2) -> Iterator[None]:
    """No channel stays on the chip, tiles are the smallest there are, and two slices are merged at once.

    Sums have so many programs, if there are tiles for them: with two, each has several tiles.
    """
    small = {
        kernel: {size: Tile(0 if kernel.startswith("whole") else values, 1) for size in by_size}
        for kernel, by_size in tiles.TILES.items()
    }
    with (
        patch.object(tiles, "TILES", small),
        patch.object(tiles, "_PROGRAMS", programs),
        patch.object(tiles, "_MOST_MERGED", 2),
        replanned(),
    ):
        yield


@contextmanager
def wide() -> Iterator[None]:
    """Every offset takes 64 bits."""
    with patch.object(layout, "_WIDE_FROM", 0), replanned():
        yield


@contextmanager
def replanned() -> Iterator[None]:
    """What has been decided for a shape is decided anew in here."""
    passes.plan.cache_clear()
    try:
        yield
    finally:
        passes.plan.cache_clear()
