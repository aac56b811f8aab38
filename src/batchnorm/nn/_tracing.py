"""How our modules look to ``torch.fx.symbolic_trace``."""

from __future__ import annotations

from typing import Any

import torch
import torch.fx

__all__ = ["as_one_node"]


def as_one_node(module: torch.nn.Module, input: torch.fx.Proxy, **others: Any) -> Any:
    """The module as one node of the graph that is being traced.

    To torch.fx a ``torch.nn`` layer is a leaf by its module's name. Ours says so itself: its checks of shapes cannot be
    traced.
    """
    named = {name: value for name, value in others.items() if value is not None}
    tracer: Any = input.tracer
    return tracer.create_proxy("call_module", tracer.path_of_module(module), (input,), named)
