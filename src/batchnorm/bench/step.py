"""A user's own training step, as a target on the command line names it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import ArgumentError
from ..surgery.example import arguments, said
from ..targets import TargetError, resolve

__all__ = ["Step", "load"]

_CONTRACT = "name a callable without arguments that returns (module, inputs) or (module, inputs, loss)."


@dataclass
class Step:
    """Forward pass, loss, backward pass; gradients are let go at the end, as an optimizer's ``zero_grad`` does.

    Args:
        module: The model, in the mode it is trained in.
        inputs: What it is called with: a tensor, a tuple of arguments or a dict of keywords.
        loss: Called with the output, gives a scalar. Without one: the output, or its ``loss``, where that is a scalar;
            else the mean square of all floating point numbers in the output.
        around: Makes the context that the forward pass runs in.
    """

    module: Callable[..., Any]
    inputs: Any = ()
    loss: Callable[[Any], Tensor] | None = None
    around: Callable[[], AbstractContextManager[Any]] = nullcontext

    def forward(self) -> Tensor:
        """The scalar that is differentiated."""
        return self.loss_and_output()[0]

    def loss_and_output(self) -> tuple[Tensor, Any]:
        """That, and what the module gave."""
        with self.around():
            output = self.output()
            return (_mean_square(output) if self.loss is None else self.loss(output)), output

    def output(self) -> Any:
        """What the module gives."""
        positional, named = arguments(self.inputs)
        return self.module(*positional, **named)

    def parameters(self) -> list[torch.nn.Parameter]:
        """Those that are trained."""
        module: Any = self.module
        return [parameter for parameter in module.parameters() if parameter.requires_grad]

    def step(self) -> None:
        """One training step without an optimizer."""
        self.forward().backward()
        for parameter in self.parameters():
            parameter.grad = None


def _mean_square(output: Any) -> Tensor:
    own = getattr(output, "loss", output)
    if isinstance(own, Tensor) and own.dim() == 0:
        return own
    tensors = list(_tensors(output))
    if not tensors:
        raise ArgumentError(
            f"the model's output, a {type(output).__name__}, holds no tensor that needs a gradient.",
            "return (module, inputs, loss) with a loss that takes this output.",
        )
    total = sum(tensor.float().square().mean() for tensor in tensors)
    assert isinstance(total, Tensor)
    return total


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.requires_grad and value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)


def load(target: str) -> Step:
    """The training step that a target names.

    Args:
        target: ``package.module:callable``. Called without arguments it returns ``module`` (called without arguments
            itself), ``(module, inputs)`` or ``(module, inputs, loss)``; see :class:`Step`.

    Raises:
        TargetError: It is not there, cannot be called, or returns something else.
    """
    found = resolve(target)
    if not isinstance(found, torch.nn.Module):
        if not callable(found):
            raise TargetError(f"{target} is a {type(found).__name__}, which cannot be called.", _CONTRACT)
        try:
            found = found()
        except (Exception, SystemExit) as error:
            raise TargetError(f"{target}: calling it raised {said(error)}.", _CONTRACT) from error
    parts = found if isinstance(found, tuple) else (found,)
    if not 1 <= len(parts) <= 3 or not isinstance(parts[0], torch.nn.Module):
        what = ", ".join(type(part).__name__ for part in parts)
        raise TargetError(f"{target} returned {what}.", _CONTRACT)
    if len(parts) == 3 and not callable(parts[2]):
        raise TargetError(f"{target}: the loss is a {type(parts[2]).__name__}, which cannot be called.", _CONTRACT)
    module = parts[0]
    inputs = parts[1] if len(parts) > 1 else ()
    loss = parts[2] if len(parts) > 2 else None
    # Of another kind of mapping, what rewrites a model would not see the tensors.
    return Step(module, dict(inputs) if isinstance(inputs, Mapping) else inputs, loss)
