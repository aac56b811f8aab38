"""One attempt at folding: in a copy, all norms that can be folded but those that are to stay."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..activation import IDENTITY, Activation
from ..errors import ArgumentError, SurgeryError
from ..nn._base import is_batch_norm
from .copying import copied
from .foldable import is_plain, only_call
from .folding import Parameters, folded_after, folded_before, pads, parameters, put, scale_and_shift
from .graph import Call, Graph
from .neighbours import Kept, Neighbours
from .proof import Errors, prove
from .result import Outcome
from .stored import Stored

__all__ = ["Attempt", "Plan", "SumAndActivation"]


class SumAndActivation(torch.nn.Module):
    """What is left of a ``BatchNormAct*`` whose norm is folded: ``activation(input + residual)``.

    Example:
        >>> SumAndActivation(Activation("relu"))(torch.tensor([-1.0, 2.0]), torch.tensor([3.0, 4.0]))
        tensor([2., 6.])
    """

    def __init__(self, activation: Activation) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, input: Tensor, residual: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Called as the layer was, but for a mask."""
        if mask is not None:
            raise ArgumentError("a folded norm takes no mask.", "fold with an example that has one: the norm is kept.")
        return self.activation(input if residual is None else input + residual)

    def extra_repr(self) -> str:
        """The activation."""
        return repr(self.activation)


@dataclass(frozen=True)
class Plan:
    """What all attempts share.

    Attributes:
        given: The model in evaluation.
        graph: Its graph.
        counts: How often its modules are called.
        inputs: The example.
    """

    given: torch.nn.Module
    graph: Graph
    counts: Counter[torch.nn.Module]
    inputs: Any

    @cached_property
    def stored(self) -> Stored:
        """What the model leaves on itself when it runs."""
        return Stored.by(self.given, self.inputs)


@dataclass
class Attempt:
    """Folds what can be folded, in a copy.

    Attributes:
        plan: What is folded.
        spared: Why a norm is to stay, by path.
        double: Whether the copy is in float64, so that nothing is rounded.
        model: The copy.
        outcomes: What became of the norms, by path, in the order of the model.
    """

    plan: Plan
    spared: dict[str, str]
    double: bool = False
    model: torch.nn.Module = field(init=False)
    outcomes: dict[str, Outcome] = field(init=False)

    def __post_init__(self) -> None:
        given = self.plan.given
        self.model = copied(given).double() if self.double else copied(given)
        self._unrounded: dict[Call, Parameters] = {}
        modules = dict(given.named_modules(remove_duplicate=False))
        self._around = Neighbours(self.plan.graph, modules, self.plan.counts)
        norms = {path: module for path, module in given.named_modules() if is_batch_norm(module)}
        self.outcomes = {path: self._outcome(path, norm) for path, norm in norms.items()}
        # A norm may stand between another one and its layer, and is out of the way once it is folded.
        left = self.kept
        while left:
            self.outcomes |= {each.layer: self._outcome(each.layer, norms[each.layer]) for each in left}
            if len(self.kept) == len(left):
                break
            left = self.kept

    @property
    def changed(self) -> list[Outcome]:
        """The norms that are part of a layer now."""
        return [outcome for outcome in self.outcomes.values() if outcome.action == "folded"]

    @property
    def kept(self) -> list[Outcome]:
        """The norms that are not."""
        return [outcome for outcome in self.outcomes.values() if outcome.action == "kept"]

    def prove(self) -> Errors:
        """How far the copy is off on the example.

        Raises:
            SurgeryError: It computes or stores something else, or loses digits that the model does not.
        """
        exact = Attempt(self.plan, {each.layer: each.detail for each in self.kept}, double=True)
        given, inputs = self.plan.given, self.plan.inputs
        errors = prove(given, self.model, inputs, gradients=False, changed_in_double=exact.model)
        self.plan.stored.check(self.model, exact.model, inputs)
        # A norm before a layer takes away a mean; folded, that is taken away from sums which are rounded already.
        for dtype, found in errors.by_dtype.items():
            allowed = 3 * (errors.own or 0.0) + math.sqrt(torch.finfo(getattr(torch, dtype)).eps)
            if found > allowed:
                raise SurgeryError(f"roundings in {dtype} would grow to {found:.1e} (allowed {allowed:.1e}).")
        return errors

    def _outcome(self, path: str, norm: torch.nn.Module) -> Outcome:
        kind = type(norm).__name__
        try:
            if path in self.spared:
                raise Kept(self.spared[path])
            call = only_call(norm, path, self._around)
            layers = self._fold(call)
        except Kept as reason:
            return Outcome(path, kind, "kept", str(reason))
        if is_plain(norm):
            self._around.folded.add(call)
            self._replace(path, torch.nn.Identity())
        else:
            assert isinstance(norm.activation, Activation)
            self._replace(path, SumAndActivation(norm.activation))
        return Outcome(path, kind, "folded", f"into {', '.join(str(layer) for layer in layers)}")

    def _fold(self, call: Call) -> list[Call]:
        """The layers that a norm has become part of."""
        assert call.module is not None
        scale, shift = scale_and_shift(call.module)
        try:
            layer = self._around.before(call)
            self._put({layer: folded_after(self._twin(layer), self._exact(layer), scale, shift)})
            return [layer]
        except Kept as reason:
            before = str(reason)
        try:
            layers = self._after(call, bool(shift.any()))
            self._put({layer: folded_before(self._twin(layer), self._exact(layer), scale, shift) for layer in layers})
            return layers
        except Kept as reason:
            raise Kept(f"before: {before}; after: {reason}") from None

    def _after(self, call: Call, shifts: bool) -> list[Call]:
        norm = call.module
        assert norm is not None
        if not is_plain(norm) and norm.activation != IDENTITY:
            assert isinstance(norm.activation, Activation)
            raise Kept(f"its {norm.activation.name} stands between")
        if len(call.inputs) > 1:
            raise Kept("its residual is added before")
        layers = self._around.after(call)
        for layer in layers:
            assert layer.module is not None
            how = pads(layer.module)
            if shifts and how:
                raise Kept(f"{layer} {how}")
        return layers

    def _exact(self, layer: Call) -> Parameters:
        """As they are before rounding: a layer with several norms is rounded once."""
        return self._unrounded.get(layer) or parameters(self._twin(layer))

    def _twin(self, layer: Call) -> torch.nn.Module:
        return self.model.get_submodule(layer.path)

    def _put(self, new: dict[Call, Parameters]) -> None:
        """All or none."""
        former = {layer: dict(self._twin(layer)._parameters) for layer in new}
        for layer, exact in new.items():
            failed = put(self._twin(layer), exact)
            if failed:
                for each, old in former.items():
                    self._twin(each)._parameters.update(old)
                raise Kept(f"{failed}, in {layer}")
        self._unrounded |= new

    def _replace(self, path: str, new: torch.nn.Module) -> None:
        """At all its places."""
        old = self.model.get_submodule(path)
        new.eval()
        for parent in list(self.model.modules()):
            for name, child in parent._modules.items():
                if child is old:
                    parent._modules[name] = new
