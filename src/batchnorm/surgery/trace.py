"""What feeds what: one graph of module calls and operators, for whatever rewrites or judges a model.

``torch.export`` follows the user's own Python code on tensors without values, and its ``nn_module_stack`` names the
module behind each operator. A module without children becomes one :class:`Call`; every operator outside of these is a
call of its own. Export takes a branch on sizes, on Python values and on ``training`` as the example takes it; where
the code branches on the *values* of tensors it fails, since what feeds what then depends on the data. Of such a model
the parts that are certain are traced: every child whose own graph does not depend on data, with the inputs that it
got in one run of the whole model. What happens to the outputs of such a part nobody knows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._pytree import tree_map_only

from ..errors import SurgeryError
from .copying import copied
from .example import arguments, fresh, said
from .exported import append
from .graph import Graph
from .randomness import seeded

__all__ = ["trace"]

_Runs = dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]]


def trace(model: torch.nn.Module, example_inputs: Any) -> Graph:
    """The graph of one run of a model, in the mode (training or evaluation) it is in.

    The model and the inputs stay as they are: what is traced is a copy, with tensors that have no values. Only where it
    does not trace whole is a copy run once.

    Args:
        model: Any module.
        example_inputs: A tensor, a tuple of arguments or a dict of keywords.

    Raises:
        SurgeryError: The model cannot be copied, or raises on the inputs.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.ReLU())
        >>> [str(call) for call in trace(model, torch.randn(2, 3)).calls]
        ['0 (Linear)', '1 (BatchNorm1d)', '2 (ReLU)']
    """
    graph = Graph()
    if not isinstance(model, torch.nn.Module):
        raise SurgeryError(f"a {type(model).__name__} is no torch.nn.Module.", "give the module itself.")
    copy = _ready(model)
    reason = append(graph, copy, "", *arguments(fresh(example_inputs)))
    if reason:
        copy = _ready(model)
        runs = _runs(copied(model), *arguments(fresh(example_inputs)))
        graph.uncertain[""] = reason
        _append_children(graph, copy, "", runs)
    # The copy was there to be run: what the graph names is the model's own.
    modules = dict(model.named_modules(remove_duplicate=False))
    for call in graph.calls:
        if call.module is not None:
            call.module = modules[call.path]
    return graph


def _ready(model: torch.nn.Module) -> torch.nn.Module:
    """A copy that can be traced. It shares nothing: a model may move its own parameters, as momentum encoders do."""
    copy = copied(model)
    for module in copy.modules():
        if isinstance(module, _NormBase) and module.momentum is None:
            module.momentum = 0.1  # torch's layer would wait for its count of batches: a value, which export has not
    return copy


def _runs(model: torch.nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> _Runs:
    """The arguments of each call of each module, by path, in one run of the model, which may change."""
    runs: _Runs = {}
    handles = []
    for path, module in model.named_modules():
        runs[path] = []
        if isinstance(module, torch.jit.ScriptModule):
            continue  # it takes no hooks, and traces with whatever calls it or not at all

        def keep(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], path: str = path) -> None:
            detach = torch.Tensor.detach  # the graph behind an argument is not the module's
            runs[path].append((tree_map_only(Tensor, detach, args), tree_map_only(Tensor, detach, kwargs)))

        handles.append(module.register_forward_pre_hook(keep, with_kwargs=True))
    try:
        with seeded(), torch.no_grad():
            model(*positional, **named)
    except Exception as error:
        raise SurgeryError(
            f"the model raises on the example inputs: {said(error)}.",
            "give inputs that it can be called with: a tensor, a tuple of arguments or a dict of keywords.",
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return runs


def _append_children(graph: Graph, parent: torch.nn.Module, prefix: str, runs: _Runs) -> None:
    """Adds what is certain below a module that does not trace itself."""
    pieces = list(parent.named_children())
    if type(parent) is torch.nn.Sequential and len(runs.get(prefix, [])) == 1:
        pieces = list(_joined(parent, prefix, runs))
    for name, child in pieces:
        path = f"{prefix}.{name}" if prefix and name else prefix or name
        calls = runs.get(path, []) if name else runs.get(_first_path(child, prefix), [])
        if not calls:
            _append_children(graph, child, path, runs)  # a list of modules, which is never called
            continue
        if len(calls) > 1:
            graph.uncertain[path] = f"it is called {len(calls)} times by code that does not trace"
            continue
        reason = append(graph, child, path, *calls[0])
        if reason:
            graph.uncertain[path] = reason
            _append_children(graph, child, path, runs)


def _first_path(chain: torch.nn.Module, prefix: str) -> str:
    first = next(iter(chain._modules))
    return f"{prefix}.{first}" if prefix else first


def _joined(sequential: torch.nn.Sequential, prefix: str, runs: _Runs) -> Iterator[tuple[str, torch.nn.Module]]:
    """The children of a Sequential, with the longest runs of those that trace as one, under an empty name.

    Within such a run each output is read by the next child and by nothing else.
    """
    waiting: dict[str, torch.nn.Module] = {}

    def flush() -> Iterator[tuple[str, torch.nn.Module]]:
        if len(waiting) == 1:
            yield from waiting.items()
        elif waiting:
            chain = torch.nn.Sequential()
            chain._modules.update(waiting)
            yield "", chain
        waiting.clear()

    for name, child in sequential.named_children():
        path = f"{prefix}.{name}" if prefix else name
        calls = runs.get(path, [])
        if len(calls) == 1 and not append(Graph(), child, path, *calls[0]):
            waiting[name] = child
        else:
            yield from flush()
            yield name, child
    yield from flush()
