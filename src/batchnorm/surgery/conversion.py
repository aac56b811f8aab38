"""One layer becomes one of another kind, and remembers what it needs to become what it was."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..activation import IDENTITY
from ..ops.synced_group import Group
from .kinds import Found, Kind, activation_of, takes_activation

__all__ = ["Conversion", "remembered_tensors"]

# On the layer, a dictionary of plain values: a layer of torch's must be read where this library is not. It holds, where
# there is something to hold, the "classes" and the "own" attributes of the kinds it has been, and its "dimensions".
_MEMORY = "_converted"

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class Conversion:
    """What a layer is to become, found out before anything is changed.

    Args:
        layer: As it is.
        found: What it is.
        to: The kind it is to be of.
        dimensions: Its spatial dimensions, for where neither its class nor its past says them.
        arguments: The new kind's own.

    Attributes:
        reason: Why it cannot be; None where it can.
    """

    def __init__(self, layer: Any, found: Found, to: Kind, dimensions: int | None, arguments: dict[str, Any]) -> None:
        self.found, self.to, self.given = found, to, arguments
        self.cls: type[torch.nn.Module] = type(layer)
        memory = layer.__dict__.get(_MEMORY, {})
        where = found.dimensions or memory.get("dimensions") or dimensions or 0
        self.reason = self._refusal(layer, memory.get("classes", {}).get(to.name), where)
        if self.reason is not None:
            return
        # By precedence: what is given, what the layer has under that name, what it had when it was of the kind.
        had = memory.get("own", {}).get(to.name, {})
        before = {name: had[name] for name in to.arguments if name in had}
        shared = [name for name in to.arguments if name in found.kind.arguments and name not in arguments]
        now = {name: getattr(layer, name) for name in shared}
        known = {**before, **now, **arguments}
        self.pattern = to.build({name: _itself(value) for name, value in known.items()})

    def _refusal(self, layer: Any, former: type[torch.nn.Module] | None, dimensions: int) -> str | None:
        to, kind = self.to, self.found.kind
        if to is kind:
            if "domains" in self.given and set(self.given["domains"]) != set(layer.domains):
                return f"it has the domains {', '.join(layer.domains)}: its add_domain adds one"
            return None
        if to.needs_statistics and not (
            layer.track_running_stats and all(getattr(layer, name, None) is not None for name in _STATISTICS)
        ):
            return f"it has no running statistics, and {to.name!r} needs them"
        if dimensions not in to.classes and 0 not in to.classes:
            return "nobody knows its dimensions: say dimensions=1, 2 or 3 (1 for (N, C) and (N, C, L))"
        activation = activation_of(layer)
        cls = to.class_for(dimensions, activation)
        if cls is None:
            return f"{to.name!r} has no activation, and this layer has {activation!r}"
        fits = former is not None and (activation == IDENTITY or takes_activation(former))
        self.cls = former if former is not None and fits else cls
        names = {*to.arguments, *to.attributes} - {*kind.arguments, *kind.attributes}
        if to.name == "domain":
            names.add("statistics")
        if to.ours and not kind.ours:
            names.add("nonfinite")
        if takes_activation(self.cls) and not takes_activation(type(layer)):
            names.add("activation")
        places = (vars(layer), layer._parameters, layer._buffers, layer._modules)
        taken = sorted(name for name in names if any(name in place for place in places))
        return f"it has an attribute {taken[0]!r}, which means something else to {to.name!r}" if taken else None

    def apply(self, layer: Any) -> None:
        """Change a layer, which is a copy of the one that was looked at."""
        if self.to is self.found.kind:
            for name in self.given:
                if name != "domains":  # they are the same
                    setattr(layer, name, getattr(self.pattern, name))
            return
        memory = layer.__dict__.pop(_MEMORY, {})
        memory.setdefault("classes", {})
        memory.setdefault("own", {})
        self._leave(layer, memory)
        layer.__class__ = self.cls
        self._enter(layer, memory)
        memory = {name: value for name, value in memory.items() if value}
        if memory:
            layer.__dict__[_MEMORY] = memory

    def _leave(self, layer: Any, memory: dict[str, Any]) -> None:
        kind, attributes = self.found.kind, layer.__dict__
        if type(layer) is not kind.class_for(self.found.dimensions, activation_of(layer)):
            memory["classes"][kind.name] = type(layer)
        if self.found.dimensions:
            memory["dimensions"] = self.found.dimensions
        own = {name: attributes.pop(name) for name in kind.attributes if name in attributes}
        if kind.name == "frozen":
            own.pop("_mode_written", None)
            attributes["training"] = own.pop("asked_mode", True)
        elif kind.name == "domain":
            own["domains"] = _without_domains(layer, own["_domain"])
        elif kind.name in ("sync", "torch-sync"):
            group = own.pop("_group", own.pop("process_group", None))
            if group is not None:  # by its name: groups can be neither copied nor pickled
                own["process_group"] = group if isinstance(group, Group) else Group.of(group)
        if own:
            memory["own"][kind.name] = own
        if kind.ours and not self.to.ours and "nonfinite" in attributes:
            memory["own"]["ours"] = {"nonfinite": attributes.pop("nonfinite")}
        if takes_activation(type(layer)) and not takes_activation(self.cls):
            attributes.pop("activation", None)  # the identity

    def _enter(self, layer: Any, memory: dict[str, Any]) -> None:
        memory["classes"].pop(self.to.name, None)
        had = memory["own"].pop(self.to.name, {})
        attributes = layer.__dict__
        if self.to.ours:
            attributes.update(memory["own"].pop("ours", {}))
        if takes_activation(self.cls):
            attributes.setdefault("activation", IDENTITY)
        if self.to.name == "frozen":
            attributes["asked_mode"] = attributes.pop("training")
        elif self.to.name == "domain":
            _with_domains(layer, self.pattern, had)
        else:
            attributes.update({name: vars(self.pattern)[name] for name in self.to.attributes})
            if self.to.name == "sync" and "process_group" in had and "process_group" not in self.given:
                attributes["_group"] = had["process_group"]


def remembered_tensors(layer: torch.nn.Module) -> Iterator[Tensor]:
    """The buffers of domains that a layer has not now."""
    domains = layer.__dict__.get(_MEMORY, {}).get("own", {}).get("domain", {}).get("domains", {})
    for buffers in domains.values():
        yield from buffers.values()


def _itself(argument: Any) -> Any:
    return argument.resolve() if isinstance(argument, Group) else argument


def _without_domains(layer: Any, current: str) -> dict[str, dict[str, Tensor]]:
    """Makes the buffers of the current domain the layer's; gives those of the others."""
    statistics: dict[str, torch.nn.Module] = dict(layer._modules.pop("statistics").items())
    others = layer._buffers.copy()
    layer._buffers.clear()  # torch's three come first in a state_dict
    layer._buffers.update(statistics[current]._buffers)
    layer._buffers.update(others)
    layer._non_persistent_buffers_set.update(statistics[current]._non_persistent_buffers_set)
    return {name: {} if name == current else dict(each._buffers) for name, each in statistics.items()}  # type: ignore[arg-type]


def _with_domains(layer: Any, pattern: Any, had: dict[str, Any]) -> None:
    """Makes the layer's buffers those of its current domain; others are as they were, or begin as copies of them."""
    known: dict[str, dict[str, Tensor]] = had.get("domains", {})
    names: tuple[str, ...] = pattern.domains
    current = had["_domain"] if had.get("_domain") in names else names[0]
    own = {name: layer._buffers.pop(name) for name in _STATISTICS}
    hidden = layer._non_persistent_buffers_set & set(_STATISTICS)
    layer._non_persistent_buffers_set -= hidden
    statistics = torch.nn.ModuleDict()
    for domain in names:
        module = torch.nn.Module()
        for name, buffer in own.items():
            value = buffer
            if domain != current:
                former = known.get(domain, {}).get(name)
                # What was put aside has not followed the layer to another device or dtype.
                value = buffer.detach().clone() if former is None else former.to(buffer.device, buffer.dtype)
            module.register_buffer(name, value, persistent=name not in hidden)
        statistics[domain] = module.train(layer.training)
    layer._modules["statistics"] = statistics.train(layer.training)
    layer.__dict__["_domain"] = current
