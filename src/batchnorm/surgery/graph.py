"""What a traced model is told as: calls, the values between them, and who reads what."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__ = ["Call", "Graph", "Value", "operator_name"]


@dataclass(eq=False)
class Value:
    """What a call gives, or what the model is given.

    Attributes:
        source: The call that gave it; None for inputs, parameters, buffers and constants.
        state: The name of the parameter or buffer that it is; empty for anything else.
        example: It on the example, as a tensor without values (shape, dtype, strides), or whatever else it is.
        readers: The calls that take it, in order, each once.
        escapes: Whether code that is not in the graph sees it: the model's caller, or what could not be traced.
    """

    source: Call | None = None
    state: str = ""
    example: Any = None
    readers: list[Call] = field(default_factory=list)
    escapes: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor; empty where it is none."""
        return tuple(self.example.shape) if isinstance(self.example, Tensor) else ()

    @property
    def dtype(self) -> torch.dtype | None:
        """Of the tensor; None where it is none."""
        return self.example.dtype if isinstance(self.example, Tensor) else None


@dataclass(eq=False)
class Call:
    """One call of a module without children, or of an operator outside of any.

    Attributes:
        index: Its place in the order of execution.
        path: The module's path in the model; of an operator, that of the module whose ``forward`` calls it.
        module: The module without children; None for an operator.
        steps: The operators that ran, each with its arguments, in which a :class:`Value` stands for each tensor.
        reads: The values from outside that it takes, parameters and buffers too, each once; not those of which it
            takes the sizes alone.
        gives: The values of it that something outside sees.
        writes: Those of ``reads`` that it changes in place.
    """

    index: int
    path: str
    module: torch.nn.Module | None = None
    steps: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    reads: list[Value] = field(default_factory=list)
    gives: list[Value] = field(default_factory=list)
    writes: list[Value] = field(default_factory=list)

    @property
    def inputs(self) -> list[Value]:
        """Those of ``reads`` that are no parameters or buffers."""
        return [value for value in self.reads if not value.state]

    def step(self, *names: str) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """The arguments of its only step among the operators named, such as ``"aten.conv2d"``; else None."""
        found = [(args, named) for target, args, named in self.steps if operator_name(target) in names]
        return found[0] if len(found) == 1 else None

    def __str__(self) -> str:
        if self.module is not None:
            kind = type(self.module).__name__
            return f"{self.path} ({kind})" if self.path else kind
        operator = operator_name(self.steps[-1][0])
        return f"{operator} in {self.path}" if self.path else operator


@dataclass(eq=False)
class Graph:
    """What feeds what in one run of a model.

    Attributes:
        calls: In the order of execution.
        uncertain: Why, by the path of each module whose own code is not in the graph; empty where the model traced
            whole. Its children may be there all the same, with inputs from nowhere and outputs that escape.
    """

    calls: list[Call] = field(default_factory=list)
    uncertain: dict[str, str] = field(default_factory=dict)

    def calls_of(self, module: torch.nn.Module) -> list[Call]:
        """The calls of a module without children, whatever paths lead to it."""
        return [call for call in self.calls if call.module is module]


def operator_name(target: Any) -> str:
    """``"aten.relu"`` for ``aten.relu_.default``: the operator in all its forms."""
    if isinstance(target, torch._ops.OpOverload):
        return f"{target.namespace}.{target._schema.name.partition('::')[2].rstrip('_')}"
    return str(getattr(target, "__name__", target))
