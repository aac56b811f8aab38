"""From ``torch.export``'s program of a module to calls in a graph."""

from __future__ import annotations

import io
import logging
import operator
import signal
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import torch
import torch.fx
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from ..nn.domain import DomainNorm
from .example import said
from .graph import Call, Graph, Value, operator_name
from .randomness import seeded

__all__ = ["append", "quiet", "uninterrupted"]

# Whose handlers raise, where one wants a program to stop; Windows has not all of them.
_STOPS = [
    signal.Signals[name]
    for name in ("SIGINT", "SIGTERM", "SIGALRM", "SIGHUP", "SIGUSR1", "SIGUSR2")
    if name in signal.Signals.__members__
]

# These ask for the sizes or the dtype of an argument, by its place, and never for its values.
_SIZES_OF = {
    "aten._assert_tensor_metadata": 0,
    **dict.fromkeys(("aten.reshape_as", "aten.view_as", "aten.expand_as"), 1),
    **{f"aten.{kind}_like": 0 for kind in ("empty", "full", "ones", "rand", "randint", "randn", "zeros")},
    **{f"aten.new_{kind}": 0 for kind in ("empty", "full", "ones", "zeros")},
}


def append(
    graph: Graph, module: torch.nn.Module, prefix: str, positional: tuple[Any, ...], named: dict[str, Any]
) -> str:
    """Adds the calls of a module that traces whole; else says why it does not."""
    try:
        with uninterrupted(), quiet(), seeded():
            program = torch.export.export(module, positional, named, strict=False)
    except Exception as error:  # export raises what the model's code does, and many kinds of its own
        return said(error)
    _Reader(graph, module, prefix, program).read()
    return ""


def _is_leaf(module: torch.nn.Module) -> bool:
    """Whether all of a module's operators make one call of the graph."""
    # What a norm with domains holds are statistics, which nobody calls.
    return not module._modules or isinstance(module, DomainNorm)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Holds back, in the main thread, what ends a program, and delivers it afterwards to the user's own handlers.

    An exception that a handler raises while ``torch.export`` is in C++ may end the process: "terminate called".
    """
    # None is a handler that was not set in Python: that cannot be put back. Those of the system do not raise.
    own = threading.current_thread() is threading.main_thread()
    handlers = {each: handler for each in _STOPS if own and callable(handler := signal.getsignal(each))}
    came: dict[int, None] = {}
    try:
        for each in handlers:
            signal.signal(each, lambda number, _: came.setdefault(number))
        yield
    finally:
        for each in reversed(handlers):  # Ctrl-C last: with it the next one can end this
            signal.signal(each, handlers[each])
        for number in came:
            signal.raise_signal(number)


@contextmanager
def quiet() -> Iterator[None]:
    """Export logs and prints, at length, what it then raises."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


class _Reader:
    """Turns an exported program into calls."""

    def __init__(
        self, graph: Graph, module: torch.nn.Module, prefix: str, program: torch.export.ExportedProgram
    ) -> None:
        self.graph, self.prefix, self.program = graph, prefix, program
        self.modules = dict(module.named_modules(remove_duplicate=False))
        self.values: dict[torch.fx.Node, Any] = {}
        self.calls: dict[str, Call] = {}  # of leaf modules, by the name of the call
        self.sources: dict[Value, Call] = {}

    def read(self) -> None:
        signature = self.program.graph_signature
        names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                state = names.get(node.name, "")
                self.values[node] = Value(state=self._path(state) if state else "", example=node.meta.get("val"))
        for value in self._run(self.program.graph_module):
            value.escapes = True
            self._seen_outside(value)

    def _run(self, module: torch.fx.GraphModule) -> list[Value]:
        """Reads one graph, whose inputs have their values already; gives what it returns."""
        for node in module.graph.nodes:
            if node.op == "get_attr":
                self.values[node] = _attribute(module, node.target)
            elif node.op == "call_function":
                self._step(module, node)
            elif node.op == "output":
                returned = [value for value in tree_leaves(self._values(node.args)) if isinstance(value, Value)]
        return returned

    def _step(self, module: torch.fx.GraphModule, node: torch.fx.Node) -> None:
        args, named = self._values(node.args), self._values(node.kwargs)
        if node.target is operator.getitem and isinstance(args[0], list | tuple):
            self.values[node] = args[0][args[1]]  # one of several that an operator gave
            return
        inner = [arg for arg in args if isinstance(arg, torch.fx.GraphModule)]
        if len(inner) == 1 and str(node.target).startswith("wrap_with_"):
            # What runs under torch.no_grad() or autocast is a graph of its own, called with the values that it reads.
            given = args[args.index(inner[0]) + 1 :]
            places = [each for each in inner[0].graph.nodes if each.op == "placeholder"]
            self.values.update(zip(places, given, strict=True))
            self.values[node] = self._run(inner[0])
            return
        call = self._call(node)
        call.steps.append((node.target, args, named))
        sizes = _SIZES_OF.get(operator_name(node.target))
        for value in tree_leaves(([arg for place, arg in enumerate(args) if place != sizes], named)):
            if isinstance(value, Value) and self.sources.get(value) is not call:
                self._reads(call, value)
        written = list(_written(node.target, args, named))
        for value in written:
            if self.sources.get(value) is not call and value not in call.writes:
                call.writes.append(value)
        state = written[0].state if written else ""  # a buffer that was counted up is that buffer still
        self.values[node] = tree_map(self._given_by(call, state), node.meta.get("val"))

    def _call(self, node: torch.fx.Node) -> Call:
        stack: dict[str, tuple[str, Any]] = node.meta.get("nn_module_stack") or {}
        key, path = "", ""
        for name, (where, _) in stack.items():
            key, path = name, where
        owner = self.modules.get(path)
        if owner is None or not _is_leaf(owner):
            return self._added(Call(len(self.graph.calls), self._path(path)))
        if key not in self.calls:
            self.calls[key] = self._added(Call(len(self.graph.calls), self._path(path), owner))
        return self.calls[key]

    def _added(self, call: Call) -> Call:
        self.graph.calls.append(call)
        return call

    def _path(self, path: str) -> str:
        return f"{self.prefix}.{path}" if self.prefix and path else self.prefix or path

    def _values(self, arguments: Any) -> Any:
        return tree_map_only(torch.fx.Node, lambda node: self.values[node], arguments)

    def _given_by(self, call: Call, state: str) -> Callable[[Any], Value]:
        def given(example: Any) -> Value:
            value = Value(state=state, example=example)
            self.sources[value] = call
            return value

        return given

    def _reads(self, call: Call, value: Value) -> None:
        self._seen_outside(value)
        if value not in call.reads:
            call.reads.append(value)
            value.readers.append(call)

    def _seen_outside(self, value: Value) -> None:
        source = self.sources.get(value)
        if source is not None and value.source is None:
            value.source = source
            source.gives.append(value)


def _attribute(module: torch.fx.GraphModule, target: Any) -> Any:
    found: Any = module
    for name in str(target).split("."):
        found = getattr(found, name)
    return found if isinstance(found, torch.fx.GraphModule) else Value(example=found)


def _written(target: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Iterable[Value]:
    """What an operator changes in place, by its schema."""
    if not isinstance(target, torch._ops.OpOverload):
        return
    for place, argument in enumerate(target._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[place] if place < len(args) else named.get(argument.name)
            yield from (each for each in tree_leaves(value) if isinstance(each, Value))
