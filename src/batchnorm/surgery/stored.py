"""What a forward pass leaves on a model: tensors in attributes of its modules, ``self.features = self.conv(x)``.

No graph shows them, since to store a value is no operator, and no output has them. Whoever reads them later is outside
of the model: a loss on inner values, Grad-CAM.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten_with_path

from ..errors import DifferentResultError
from .copying import copied
from .example import call
from .proof import EXACT, Results, distance, in_double, results

__all__ = ["Stored"]

_MODULES_OWN = {*vars(torch.nn.Module()), "_parameters", "_modules"} - {"_buffers"}
_DEPTH = 2  # an object on a module, and one on that


@dataclass(frozen=True)
class Stored:
    """What one run on an example left, by its path.

    Attributes:
        tensors: Those that the run put there or wrote.
        double: Whether the run was in float64.
    """

    tensors: dict[str, Tensor]
    double: bool

    @classmethod
    def by(cls, model: torch.nn.Module, example_inputs: Any) -> Stored:
        """By a copy of a model: in float64, if it runs in it. What another run leaves otherwise does not count.

        Example:
            >>> class Probed(torch.nn.Linear):
            ...     def forward(self, input):
            ...         self.seen = {"mean": input.mean()}
            ...         return super().forward(input)
            >>> Stored.by(torch.nn.Sequential(Probed(2, 2)), torch.ones(3, 2))
            Stored(tensors={"0.seen['mean']": tensor(1., dtype=torch.float64)}, double=True)
        """
        found = _run(model, example_inputs, double=True)
        first = cls(found, True) if found is not None else cls(_run(model, example_inputs, double=False) or {}, False)
        again = _run(model, example_inputs, double=first.double) if first.tensors else {}
        same = {name: tensor for name, tensor in first.tensors.items() if _off(tensor, (again or {}).get(name)) == 0}
        return cls(same, first.double)

    def check(self, model: torch.nn.Module, in_float64: torch.nn.Module, example_inputs: Any) -> None:
        """Compares with what a changed model leaves.

        Args:
            model: The changed one.
            in_float64: The same in float64.
            example_inputs: Those that this was left on.

        Raises:
            DifferentResultError: It leaves something else.
        """
        if not self.tensors:
            return
        others = _run(in_float64 if self.double else model, example_inputs, double=self.double)
        for name, tensor in self.tensors.items():
            off = _off(tensor, (others or {}).get(name))
            coarse = tensor.is_floating_point() and not self.double
            if not off <= (math.sqrt(torch.finfo(tensor.dtype).eps) if coarse else EXACT):
                raise DifferentResultError(
                    f"{name}, which the forward pass leaves on the model, differs by {off:.1e} on the example.",
                    "please report the model, which is as it was.",
                )


def _run(model: torch.nn.Module, example_inputs: Any, *, double: bool) -> dict[str, Tensor] | None:
    """What a run of a copy leaves; None where it does not run in float64."""
    left: dict[str, Tensor] = {}

    def run(module: torch.nn.Module, inputs: Any) -> Any:
        # The tensors themselves are kept: the place of one that is gone could be taken by another.
        before = {name: (tensor, _version(tensor)) for name, tensor in _held(module)}
        output = call(module, inputs)
        for name, tensor in _held(module):
            former, version = before.get(name, (None, 0))
            if tensor is not former or _version(tensor) != version:
                left[name] = tensor.detach()
        return output

    if not double:
        results(copied(model), example_inputs, gradients=False, run=run)
    elif in_double(model, example_inputs, gradients=False, run=run) is None:
        return None
    return left


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version  # those made under inference_mode have none


def _held(model: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The tensors in a model that are no parameters, with their paths."""
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        own = {name: value for name, value in vars(module).items() if name not in _MODULES_OWN}
        for name, value in {**own.pop("_buffers"), **own}.items():
            yield from _tensors(value, f"{prefix}{name}", _DEPTH)


def _tensors(value: Any, name: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    for where, leaf in tree_flatten_with_path(value)[0]:
        if isinstance(leaf, Tensor):
            yield f"{name}{keystr(where)}", leaf
        elif depth and hasattr(leaf, "__dict__") and not callable(leaf) and not isinstance(leaf, ModuleType):
            for attribute, inner in vars(leaf).items():
                yield from _tensors(inner, f"{name}{keystr(where)}.{attribute}", depth - 1)


def _off(tensor: Tensor, other: Tensor | None) -> float:
    if other is None or other.dtype != tensor.dtype:
        return math.inf
    return distance(Results({"output": {"": other}}, ()), Results({"output": {"": tensor}}, ()))[0]
