"""``fuse``: this library's norms in a user's model, computed with the sum and the activation that follow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..activation import Activation
from ..errors import SurgeryError
from ..nn import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    BatchNormAct1d,
    BatchNormAct2d,
    BatchNormAct3d,
    FusingBatchNorm1d,
    FusingBatchNorm2d,
    FusingBatchNorm3d,
)
from ..nn._base import is_batch_norm
from ..nn._norm_call import watch
from ..nn._variant import Variant
from ..nn.frozen import Frozen
from .copying import copied, shared
from .example import call, fresh, said, what_went_wrong
from .follow import Following, what_follows
from .graph import Graph
from .proof import Errors, prove
from .randomness import seeded
from .result import Outcome, Surgery
from .trace import trace

__all__ = ["fuse"]

# What each class becomes: with what follows, and alone. Exact types: a subclass may compute something else.
_KINDS: dict[type[torch.nn.Module], tuple[type[torch.nn.Module], type[torch.nn.Module]]] = {
    torch.nn.BatchNorm1d: (FusingBatchNorm1d, BatchNorm1d),
    torch.nn.BatchNorm2d: (FusingBatchNorm2d, BatchNorm2d),
    torch.nn.BatchNorm3d: (FusingBatchNorm3d, BatchNorm3d),
    BatchNorm1d: (FusingBatchNorm1d, BatchNorm1d),
    BatchNorm2d: (FusingBatchNorm2d, BatchNorm2d),
    BatchNorm3d: (FusingBatchNorm3d, BatchNorm3d),
    FusingBatchNorm1d: (FusingBatchNorm1d, BatchNorm1d),
    FusingBatchNorm2d: (FusingBatchNorm2d, BatchNorm2d),
    FusingBatchNorm3d: (FusingBatchNorm3d, BatchNorm3d),
}
_FUSED = (BatchNormAct1d, BatchNormAct2d, BatchNormAct3d)


def fuse(
    model: torch.nn.Module, example_inputs: Any, *, where: Callable[[str, torch.nn.Module], bool] | None = None
) -> Surgery:
    """A model that trains faster: norm, sum and activation in one pass, by this library's kernels.

    Every ``torch.nn.BatchNorm1d``, ``2d`` and ``3d`` becomes this library's layer of that name, and where the only
    thing that reads its output is an activation that fuses (:class:`batchnorm.Activation` names them), or a sum and
    perhaps an activation after it, a :class:`batchnorm.FusingBatchNorm2d` (``1d``, ``3d``), which is computed together
    with them. Modules, functions and methods of torch are found alike, wherever in the model's code they are called.

    The result is a new module tree with the parameters and buffers of the model given: the same objects, so an
    optimizer stays valid, and the same ``state_dict``. The model given stays as it is and can go on being used;
    both train the same weights and move the same running statistics. The forward code stays the user's own.

    Before it returns, outputs, gradients and buffers of both models are compared on the example, in float64 where the
    model runs in it and in its own dtype, on copies: nothing moves.

    Args:
        model: Any module, in the mode it will be used in; layers in evaluation mode stay frozen.
        example_inputs: What it is called with: a tensor, a tuple of arguments or a dict of keywords.
        where: Called with the path and the layer of each norm, says whether it may be changed.

    Returns:
        ``.model``; ``.changed`` and ``.kept``, an :class:`Outcome` for each norm layer, with what is fused or why it
        is not; ``.max_error``. ``print(result)`` shows all of it as a table.

    Raises:
        SurgeryError: The model cannot be copied, raises on the inputs, or the result would compute something else.

    Example:
        >>> block = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU())
        >>> result = fuse(block, torch.randn(4, 3, 8, 8))
        >>> print(result)
        1  BatchNorm2d  fused  relu
        1 fused; largest relative difference on the example: ... in float64, ... in float32 (...)
        >>> result.model[1].weight is block[1].weight
        True
    """
    graph = trace(model, example_inputs)
    new = shared(model)
    norms = [_Norm(path, layer, model.get_submodule(path), graph, where) for path, layer in _norms(new)]
    attempt = _Attempt(model, new, norms, example_inputs)
    try:
        errors = attempt.prove()
    except Exception as error:
        errors = attempt.without_culprits(error)
    outcomes = [norm.outcome() for norm in norms]
    changed = [outcome for outcome in outcomes if outcome.action != "kept"]
    return Surgery(new, changed, [outcome for outcome in outcomes if outcome.action == "kept"], errors)


def _norms(model: torch.nn.Module) -> list[tuple[str, torch.nn.Module]]:
    return [(path, layer) for path, layer in model.named_modules() if is_batch_norm(layer)]


class _Norm:
    """A norm layer of the new model, which becomes what it can be.

    Args:
        path: Where it stands first.
        layer: Of the new model. Its class is changed: so it keeps its parameters, buffers and attributes, and all its
            places in the tree.
        original: The layer of the model given.
        graph: Of the model given.
        where: Whether it may be changed.
    """

    def __init__(
        self,
        path: str,
        layer: torch.nn.Module,
        original: torch.nn.Module,
        graph: Graph,
        where: Callable[[str, torch.nn.Module], bool] | None,
    ) -> None:
        self.path, self.layer, self.given = path, layer, type(layer)
        self.action = "kept"
        if isinstance(layer, _FUSED):
            self.following = Following("its activation is fused already")
        elif isinstance(layer, Frozen):
            self.following = Following("it is frozen: fuse first, then freeze")
        elif isinstance(layer, Variant):
            self.following = Following(f"a {self.given.__name__} takes what follows as arguments: activation, residual")
        elif self.given not in _KINDS:
            self.following = Following(f"{self.given.__name__} is a class of its own and may compute something else")
        elif where is not None and not where(path, original):
            self.following = Following("left out by where")
        else:
            self.following = _following(original, graph)
            self.become("replaced" if self.following.activation is None else "fused")

    def become(self, action: str) -> None:
        """Takes the class that goes with an action."""
        self.action = action
        fusing, alone = _KINDS.get(self.given, (self.given, self.given))
        self.layer.__class__ = {"fused": fusing, "replaced": alone, "kept": self.given}[action]

    def step_down(self, why: str) -> None:
        """Becomes less than it is: alone instead of fused, as given instead of alone."""
        self.become("replaced" if self.action == "fused" else "kept")
        self.following = Following(why)

    def outcome(self) -> Outcome:
        """What became of it."""
        return Outcome(self.path, self.given.__name__, self.action, self.following.words)


class _Attempt:
    """The new model on the example, with some of its norms changed."""

    def __init__(self, model: torch.nn.Module, new: torch.nn.Module, norms: list[_Norm], example_inputs: Any) -> None:
        self.model, self.new, self.norms, self.inputs = model, new, norms, example_inputs

    def prove(self) -> Errors:
        """How far the new model is from the given one, once norms that turn out not to fuse stand alone."""
        seen = self._seen()
        for norm in self.norms:
            if norm.action == "fused" and seen.get(norm.path) != [(norm.following.residual, norm.following.activation)]:
                norm.step_down(f"a run did not compute it with what follows ({norm.following.words})")
        return prove(self.model, self.new, self.inputs, gradients=True)

    def without_culprits(self, error: Exception) -> Errors:
        """The proof once those norms have stepped down without which it holds; raises where there are none such."""
        for action in ("fused", "replaced"):
            changed = [norm for norm in self.norms if norm.action == action]
            for norm in self._culprits(changed, error):
                norm.step_down(_why(norm, error))
            try:
                return self.prove()
            except Exception as other:
                error = other
        if isinstance(error, SurgeryError):
            raise error
        raise SurgeryError(f"the rewritten model raises on the example inputs: {said(error)}.") from error

    def _culprits(self, norms: list[_Norm], error: Exception) -> list[_Norm]:
        """Those of the norms without which the others pass, by halving."""
        if not norms or self._passes(norms):
            return []
        if len(norms) == 1:
            return norms
        middle = len(norms) // 2
        return self._culprits(norms[:middle], error) + self._culprits(norms[middle:], error)

    def _passes(self, changed: list[_Norm]) -> bool:
        """Whether the model passes with these norms as they are, and all others of their kind a step down."""
        action = changed[0].action
        others = [norm for norm in self.norms if norm.action == action and norm not in changed]
        try:
            for norm in others:
                norm.become("replaced" if action == "fused" else "kept")
            self._seen()
            prove(self.model, self.new, self.inputs, gradients=True)
        except Exception:
            return False
        finally:
            for norm in others:
                norm.become(action)
        return True

    def _seen(self) -> dict[str, list[tuple[bool, Activation]]]:
        """What each layer is computed with, by its path, in a run of a copy of the model."""
        copy = copied(self.new)
        paths = {layer: path for path, layer in copy.named_modules()}
        with seeded(), watch() as computed:
            call(copy, fresh(self.inputs))
        seen: dict[str, list[tuple[bool, Activation]]] = {}
        for layer, residual, activation in computed:
            seen.setdefault(paths[layer], []).append((residual, activation))
        return seen


def _why(norm: _Norm, error: Exception) -> str:
    what = f"computed with {norm.following.words}" if norm.action == "fused" else "computed by this library"
    return f"{what}, {what_went_wrong(error)}"


def _following(layer: torch.nn.Module, graph: Graph) -> Following:
    calls = graph.calls_of(layer)
    if len(calls) > 1:
        return Following(f"it is called {len(calls)} times")
    if not calls:
        return Following("it is called by code that does not trace" if graph.uncertain else "it is not called")
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    if any(hooks):
        return Following("its hooks see its output")
    return what_follows(calls[0], graph)
