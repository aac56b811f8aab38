"""One look at a model: run on a few batches in both modes, with a backward pass, and left bit for bit as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..errors import ArgumentError
from ..population.batches import Batches, Forward
from ..population.engine import not_compiled, unwrapped
from ..population.layers import named
from ..surgery.randomness import seeded
from .evidence import Evidence, Settings
from .keeping import Keeping
from .look import Look, Loss
from .reached import reached_by
from .rule import Need
from .static import has_values, loader_of, static
from .surroundings import Surroundings
from .unseen import of_other_classes

__all__ = ["MAX_BATCHES", "Loss", "collect"]

#: So many batches are run in each mode, if not told otherwise.
MAX_BATCHES = 8


def collect(
    model: torch.nn.Module,
    *,
    batches: Iterable[Any] | Tensor | None = None,
    loss: Loss | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    forward: Forward | None = None,
    max_batches: int = MAX_BATCHES,
    settings: Settings | None = None,
    needs: frozenset[Need] = frozenset(Need),
    agreed: Callable[[int], int] | None = None,
) -> Evidence:
    """Looks at a model.

    Args:
        model: As for :func:`batchnorm.diagnose`, and so are the other arguments.
        batches: Without them nothing is run.
        loss: Called as ``loss(output, target)``.
        optimizer: For its groups.
        forward: Called as ``forward(model, batch)`` in place of the model.
        max_batches: At most so many are run, in each mode.
        settings: What the user knows.
        needs: What the rules that will look need: no more is done.
        agreed: Called with the number of batches, before the model is run, gives how many of them to take.

    Raises:
        ArgumentError: The model is no module, or is scripted with batches given; the batches or the loss do not fit;
            or the model raises outside of its norms. Everything is as it was.
    """
    if not isinstance(model, torch.nn.Module):
        raise ArgumentError(f"a {type(model).__name__} is no torch.nn.Module.", "give the module itself.")
    inner = unwrapped(model)
    evidence = Evidence(
        inner, static(inner), optimizer=optimizer, settings=settings or Settings(), unread=of_other_classes(inner)
    )
    if batches is not None:
        _refuse(inner)
        feed = Batches(batches, forward=forward)
        keeping, surroundings = Keeping(inner, also=reached_by(loss, forward)), Surroundings(batches)
        try:
            with not_compiled(), torch.inference_mode(_is_inference(inner)), seeded():
                look = Look(inner, feed, loss, max_batches, needs, keeping)
                if agreed is not None:
                    look.batches = look.batches[: agreed(len(look.batches))]
                evidence = replace(evidence, loader=loader_of(batches), again=feed.again, ends=look.ends)
                evidence = look.at(evidence)
            _restore(keeping, surroundings)
        except BaseException:
            try:
                _restore(keeping, surroundings)
            except BaseException:
                _restore(keeping, surroundings)  # interrupted here: the whole of it again
                raise
            raise
    return evidence


def _restore(keeping: Keeping, surroundings: Surroundings) -> None:
    keeping.restore()
    surroundings.restore()


def _is_inference(model: torch.nn.Module) -> bool:
    """Whether the model was made under ``torch.inference_mode``: it can then be run there only."""
    return any(tensor.is_inference() for tensor in (*model.parameters(), *model.buffers()))


def _refuse(model: torch.nn.Module) -> None:
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ArgumentError(
                f"{named(path, module)} is scripted, and its norms cannot be watched.",
                "give the model before torch.jit.script, or no batches.",
            )
        if isinstance(module, torch.fx.GraphModule) and "train" in vars(module):
            raise ArgumentError(
                f"{named(path, module)} is exported, and its mode cannot be changed.",
                "give the model before torch.export, or no batches.",
            )
    for path, tensor in (*model.named_parameters(), *model.named_buffers()):
        if not has_values(tensor):
            raise ArgumentError(
                f"{path} has no values yet (lazy, or on the meta device).", "run the model once, or load its weights."
            )
