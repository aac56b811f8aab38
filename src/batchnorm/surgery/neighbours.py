"""What stands around a norm: the layers that it can be folded into, or what is in the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch.utils._pytree import tree_leaves

from .channels import carried, passed
from .folding import LAYERS, Kind, kind_of
from .graph import Call, Graph, Value

__all__ = ["Kept", "Neighbours", "hooked", "norm_input", "overridden"]


class Kept(Exception):  # noqa: N818  # no error: it ends a search, and the norm stays
    """Why a norm is not folded."""


def hooked(module: torch.nn.Module) -> bool:
    """Whether code of somebody else sees what a module takes and gives, or its gradients."""
    return any(
        getattr(module, name)
        for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    )


def norm_input(call: Call) -> Value | None:
    """What a call of a norm normalizes, by statistics that are given; None where that cannot be told."""
    found = call.step("aten.batch_norm")
    if found is None:
        return None
    args, named = found
    given = {
        **dict(zip(("input", "weight", "bias", "running_mean", "running_var", "training"), args, strict=False)),
        **named,
    }
    value = given["input"]
    uses = [leaf for _, args, named in call.steps for leaf in tree_leaves((args, named)) if leaf is value]
    known = value in call.inputs and given["training"] is False and len(uses) == 1
    return value if known else None


def overridden(module: torch.nn.Module) -> bool:
    """Whether a method was replaced on the object, as some tools replace ``forward``."""
    return any(callable(getattr(type(module), name, None)) for name in vars(module))


@dataclass(eq=False)
class Neighbours:
    """Looks around norms in one graph.

    Attributes:
        graph: Of the model in evaluation.
        modules: Those of that model, by all their paths.
        counts: How often those without children are called.
        folded: Norms of which nothing is left: they give on what they take.
    """

    graph: Graph
    modules: dict[str, torch.nn.Module]
    counts: Counter[torch.nn.Module]
    folded: set[Call] = field(default_factory=set)

    def before(self, norm: Call) -> Call:
        """The layer whose output a norm takes, and nothing else does.

        Raises:
            Kept: There is none.
        """
        value, channels = norm_input(norm), 1
        assert value is not None
        way = [norm]
        while True:
            self._seen_once(value, way[-1])
            source = value.source
            if source is None:
                raise Kept(f"its input is {self._from_nowhere()}")
            way.append(source)
            kind = kind_of(source.module)
            if kind is not None:
                if channels != _features(kind, value):
                    raise Kept(f"the norm's channels are another dimension than the features of {source}")
                self._check_layer(source)
                self._check_hooks(way)
                return source
            through = self._passed(source)
            if through is None:
                raise Kept(f"its input is given by {source}{self._but(source)}")
            value, place = through[0], self._carried(source, channels, backward=True)
            if place is None:
                raise Kept(f"{source} does not keep the channels as a dimension")
            channels = place

    def after(self, norm: Call) -> list[Call]:
        """The layers that take a norm's output, where nothing else does.

        Raises:
            Kept: There are none.
        """
        layers: list[Call] = []
        waiting = [(norm.gives[0], 1, [norm])] if norm.gives else []
        while waiting:
            value, channels, way = waiting.pop()
            if value.escapes:
                raise Kept(f"its output {self._leaves()}")
            for reader in value.readers:
                through = [*way, reader]
                kind = kind_of(reader.module)
                if kind is not None and reader.inputs == [value]:
                    if channels != _features(kind, value):
                        raise Kept(f"the norm's channels are another dimension than the features of {reader}")
                    self._check_layer(reader)
                    self._check_hooks(through)
                    layers.append(reader)
                    continue
                given_on = self._passed(reader)
                if given_on is None:
                    raise Kept(f"its output is read by {reader}{self._but(reader)}")
                place = self._carried(reader, channels, backward=False)
                if place is None:
                    raise Kept(f"{reader} does not keep the channels as a dimension")
                waiting.append((given_on[1], place, through))
        if not layers:
            raise Kept("nothing reads its output")
        self._check_writes(norm, layers)
        return layers

    # --- values ---

    def _seen_once(self, value: Value, reader: Call) -> None:
        if value.escapes:
            raise Kept(f"its input {self._leaves()} too")
        others = [str(call) for call in value.readers if call is not reader]
        if others:
            raise Kept(f"its input is read by {' and '.join(others)} too")

    def _from_nowhere(self) -> str:
        return "given by code that does not trace" if self.graph.uncertain else "the model's own"

    def _leaves(self) -> str:
        return "is read by code that does not trace" if self.graph.uncertain else "leaves the model"

    def _check_writes(self, norm: Call, layers: list[Call]) -> None:
        """A layer that takes the norm's input in place of its output takes it later: it must be the same by then."""
        last = max(layer.index for layer in layers)
        for call in self.graph.calls:
            if norm.index < call.index < last and any(not value.state for value in call.writes):
                raise Kept(f"{call} works in place before {layers[0]} runs")

    def _but(self, call: Call) -> str:
        """Says of what looks like a layer that folds why it is none."""
        module = self.modules.get(call.path)
        parent = next((base for base in type(module).__mro__ if base in LAYERS), None)
        if parent is None:
            return ""
        if call.module is None:
            return ", which holds modules or parametrizations of its own"
        return f", whose class may compute something else than {parent.__name__}"

    def _passed(self, call: Call) -> tuple[Value, Value] | None:
        if call not in self.folded:
            return passed(call)
        value = norm_input(call)
        assert value is not None
        return value, call.gives[0]

    def _carried(self, call: Call, dim: int, *, backward: bool) -> int | None:
        return dim if call in self.folded else carried(call, dim, backward=backward)

    # --- layers ---

    def _check_layer(self, layer: Call) -> None:
        module = layer.module
        assert module is not None
        times = self.counts[module]
        if times > 1:
            raise Kept(f"{layer} is called {times} times")
        if hooked(module):
            raise Kept(f"{layer} has hooks")
        if overridden(module):
            raise Kept(f"{layer} has a method of its own, put on the object")
        for name in ("weight", "bias"):
            parameter = module._parameters.get(name, module)
            plain = type(parameter) is torch.nn.Parameter and parameter.is_floating_point()
            if not plain and not (name == "bias" and parameter is None):
                raise Kept(f"the {name} of {layer} is not a plain parameter")
        self.check_state(layer)

    def check_state(self, call: Call) -> None:
        """Refuses a module whose parameters or buffers other code reads: it would read others, or none."""
        for value in call.reads:
            for reader in value.readers if value.state else ():
                # Another layer that has the same parameter keeps it.
                if reader is not call and not _share_a_parameter(reader.module, call.module):
                    raise Kept(f"{value.state} is read by {reader} too")

    def _check_hooks(self, way: list[Call]) -> None:
        """Refuses where hooks would see a value that changes: those of modules which it passes."""
        ends = sorted((way[0].path, way[-1].path), key=len)
        shared = _ancestors(ends[0]) & _ancestors(ends[1])
        between = {path for call in way for path in (*_ancestors(call.path), call.path)} - shared
        common = max(shared, key=len)
        called = {call.path for call in self.graph.calls}
        for path, module in self._hooked():
            # A module without operators, an Identity, is in no graph: it may stand between where it is near.
            silent = path not in called and not module._modules and path.startswith(f"{common}." if common else "")
            if path in between or silent:
                raise Kept(f"{path} ({type(module).__name__}) has hooks, which would see another value")

    def _hooked(self) -> Iterator[tuple[str, torch.nn.Module]]:
        return ((path, module) for path, module in self.modules.items() if hooked(module))


def _share_a_parameter(one: torch.nn.Module | None, other: torch.nn.Module | None) -> bool:
    if one is None or other is None or one is other:
        return False
    return not {*map(id, one.parameters())}.isdisjoint(map(id, other.parameters()))


def _ancestors(path: str) -> set[str]:
    parts = path.split(".")
    return {".".join(parts[:depth]) for depth in range(len(parts))}


def _features(kind: Kind, value: Value) -> int:
    """The dimension of a layer's features or channels in a tensor that it takes or gives."""
    return len(value.shape) - 1 - kind.spatial
