"""Accuracy of a network with other statistics than it keeps: of some images, or of running averages that caught up."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ...population import NonfiniteError, recalibrate
from ..arms import norms
from ..training import accuracy

__all__ = ["caught_up", "precise"]

# Images that pass at once where statistics are taken.
_TOGETHER = 250


def precise(model: nn.Module, images: Tensor, validation: tuple[Tensor, Tensor]) -> float:
    """Accuracy of a copy with statistics of these images; 0 where they are not finite, as in the training itself."""
    again = copy.deepcopy(model)
    try:
        recalibrate(again, images.split(_TOGETHER))
    except NonfiniteError:
        return 0.0
    return accuracy(again, *validation)


@torch.no_grad()
def caught_up(model: nn.Module, images: Tensor, size: int, validation: tuple[Tensor, Tensor]) -> float:
    """Accuracy of a copy whose running averages are of these images alone, all batches alike, with the present weights.

    Whatever their momentum: one pass at a small momentum would leave much of what was before.
    """
    again = copy.deepcopy(model).train()
    found: dict[str, Any] = {**norms(again)}
    for norm in found.values():
        # A momentum of 0 is how a network keeps its statistics; without a count there is no average of all batches.
        if norm.momentum != 0 and norm.num_batches_tracked is not None:
            norm.reset_running_stats()
            norm.momentum = None
    # Dropout in it draws from the generator that the training itself goes on with.
    with torch.random.fork_rng(devices=[]):
        for start in range(0, len(images) - size + 1, size):
            again(images[start : start + size])
    return accuracy(again, *validation)
