"""Which norms of a model may become part of a layer, before anybody looks for one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch

from ..nn._base import is_batch_norm
from .copying import copied
from .example import call as run
from .example import fresh
from .folding import computes_as, scale_and_shift
from .graph import Call, Graph, operator_name
from .kinds import KINDS
from .neighbours import Kept, Neighbours, hooked, norm_input, overridden
from .randomness import seeded
from .result import Outcome

__all__ = ["ACTIVATED", "PLAIN", "call_counts", "functional", "is_plain", "only_call"]

# In evaluation all kinds are the plain norm but those with statistics for each of several domains.
_KINDS = [kind for kind in KINDS.values() if kind.name != "domain"]
# These may add a residual, and have an activation or none.
ACTIVATED: set[type[torch.nn.Module]] = {
    form
    for kind in _KINDS
    for cls in (kind.activated or {}).values()
    for form in (cls, cls.__dict__.get("_plain"))
    if form is not None
}
PLAIN: set[type[torch.nn.Module]] = {cls for kind in _KINDS for cls in kind.classes.values()} - ACTIVATED


def is_plain(norm: torch.nn.Module) -> bool:
    """Whether a module is a norm that folds, and nothing more."""
    return computes_as(norm, PLAIN) is not None


def only_call(norm: torch.nn.Module, path: str, around: Neighbours) -> Call:
    """The call of a norm that a layer could compute as well.

    Raises:
        Kept: The norm is of no kind that folds, or called in a way that does not.
    """
    if computes_as(norm, PLAIN | ACTIVATED) is None:
        raise Kept("its class may compute something else than the norm that it derives from")
    if norm.running_mean is None or norm.running_var is None:
        raise Kept("it has no running statistics and normalizes by the batch, in evaluation too")
    if norm.training:
        raise Kept("it stays in training mode when the model goes to evaluation")
    if hooked(norm):
        raise Kept("it has hooks, which would see other values")
    if overridden(norm):
        raise Kept("it has a method of its own, put on the object")
    if not all(bool(each.isfinite().all()) for each in scale_and_shift(norm)):
        raise Kept("its scale and shift are not finite")
    calls = around.graph.calls_of(norm)
    if not calls:
        raise Kept(_why_no_call(around.graph, path))
    times = around.counts[norm]
    if times > 1:
        raise Kept(f"it is called {times} times")
    if _adds_its_input(calls[0]):
        raise Kept("its residual is its own input, which would be the folded layer's")
    if norm_input(calls[0]) is None or not _is_known(calls[0]):
        raise Kept("it takes more than an input and another residual, such as a mask, or normalizes by the batch")
    around.check_state(calls[0])
    return calls[0]


def _is_known(call: Call) -> bool:
    """Whether a call is a norm, and of a ``BatchNormAct*`` also the activation and perhaps the sum before it."""
    names = [operator_name(target) for target, _, _ in call.steps]
    if names[0] != "aten.batch_norm" or len(call.gives) != 1:
        return False
    assert call.module is not None
    if is_plain(call.module):
        return len(names) == 1
    others = [value for value in call.inputs if value is not norm_input(call)]
    if not others:
        return True
    return names[1:2] == ["aten.add"] and len(others) == 1 and others[0] in call.steps[1][1]


def _adds_its_input(call: Call) -> bool:
    """Whether a ``BatchNormAct*`` takes one value as input and as residual."""
    names = [operator_name(target) for target, _, _ in call.steps[:2]]
    return names == ["aten.batch_norm", "aten.add"] and call.steps[0][1][0] in call.steps[1][1]


def _why_no_call(graph: Graph, path: str) -> str:
    parts = path.split(".") if path else []
    for depth in range(len(parts), -1, -1):
        part = ".".join(parts[:depth])
        if part in graph.uncertain:
            where = "it" if part == path else (part or "the model")
            return f"{where} does not trace: {graph.uncertain[part]}"
    return "it is not called on the example"


def call_counts(model: torch.nn.Module, graph: Graph, example_inputs: Any) -> Counter[torch.nn.Module]:
    """How often each module without children is called.

    Code that does not trace may call a module of a part that does; so where the graph is not the whole model, calls are
    counted in one run of a copy.
    """
    traced = Counter(call.module for call in graph.calls if call.module is not None)
    if not graph.uncertain:
        return traced
    twin, seen = copied(model), Counter[torch.nn.Module]()
    originals = dict(model.named_modules())
    for path, module in twin.named_modules():

        def count(*_: Any, module: torch.nn.Module = originals[path]) -> None:
            seen[module] += 1

        module.register_forward_pre_hook(count)
    with seeded(), torch.no_grad():
        run(twin, fresh(example_inputs))
    return traced | seen


def functional(graph: Graph) -> Iterable[Outcome]:
    """The norms in a graph that are calls of a function, or of a module that is no batch norm."""
    for call in graph.calls:
        if call.module is not None and is_batch_norm(call.module):
            continue
        for name in (operator_name(target) for target, _, _ in call.steps):
            if "batch_norm" in name or name.startswith("batchnorm."):
                yield Outcome(call.path, name, "kept", "it is called as a function, not as a layer")
