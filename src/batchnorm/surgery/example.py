"""``example_inputs``: what a model is called with, and how."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ..errors import SurgeryError

__all__ = ["arguments", "call", "fresh", "said", "what_went_wrong"]


def arguments(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments.

    Args:
        example_inputs: A tuple or list of arguments, a mapping of keywords, or the only argument.

    Example:
        >>> arguments({"pixel_values": 1}), arguments((1, 2)), arguments(1)
        (((), {'pixel_values': 1}), ((1, 2), {}), ((1,), {}))
    """
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, tuple | list):
        return tuple(example_inputs), {}
    return (example_inputs,), {}


def fresh(example_inputs: Any) -> Any:
    """The inputs with tensors and containers of their own: a model may change both."""
    if isinstance(example_inputs, Mapping):
        example_inputs = dict(example_inputs)  # of other classes torch would not see the tensors
    return tree_map_only(Tensor, _own, example_inputs)


def _own(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


def call(model: torch.nn.Module, example_inputs: Any) -> Any:
    """The model's output on the inputs."""
    positional, named = arguments(example_inputs)
    return model(*positional, **named)


def said(error: BaseException) -> str:
    """What an error says, on one line without a period: its kind and its first line."""
    first = (str(error).strip().splitlines() or [""])[0].rstrip(".")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def what_went_wrong(error: Exception) -> str:
    """Why a rewritten model will not do, without a period: a proof's words, or what the model raised."""
    return error.problem.rstrip(".") if isinstance(error, SurgeryError) else f"the model raises {said(error)}"
