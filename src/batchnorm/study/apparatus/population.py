"""What a network's batch norms meet over a whole set of images."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ...reference import moments, pooled_moments
from ...reference.moments import Moments
from ..arms import norms
from .arguments import input_of

__all__ = ["met"]


@torch.no_grad()
def met(model: nn.Module, images: Tensor) -> list[tuple[Any, Moments]]:
    """Passes all images in evaluation mode, and gives each norm with running statistics the moments of its input.

    In the order in which the first images reach them; of a norm that is called more than once those of all calls.
    The moments are of all images together, merged from parts.
    """
    found: dict[int, tuple[nn.Module, Moments]] = {}

    def watch(norm: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        own = moments(input_of(given, named).detach().double().numpy())
        found[id(norm)] = norm, pooled_moments([found[id(norm)][1], own]) if id(norm) in found else own

    with ExitStack() as stack:
        for norm in norms(model).values():
            if norm.running_var is not None:
                stack.callback(norm.register_forward_pre_hook(watch, with_kwargs=True).remove)
        stack.callback(model.train, model.training)
        model.eval()
        for part in images.split(500):
            model(part)
    return list(found.values())
