"""Questions to the graph of a model in training: what a norm normalises, by what, and what lies up and down from it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any

from ..nn._base import is_batch_norm
from ..surgery.graph import Call, Value, operator_name
from .dropout import RECURRENT, recurrent_dropout

__all__ = ["by_batch", "dropouts_before", "normalized", "reached", "renormalizes", "turned_off"]

_TAKES_MOMENTS = {"batchnorm.forward", "batchnorm.train", "batchnorm.moments"}
_DROPOUTS = {
    f"aten.{name}"
    for name in ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "native_dropout")
}
# A layer of stochastic depth draws by one of these and multiplies.
_DRAWS = {"aten.bernoulli", "aten.rand", "aten.rand_like"}
_NORMS = {
    f"aten.{name}"
    for name in ("instance_norm", "group_norm", "native_group_norm", "layer_norm", "native_layer_norm", "rms_norm")
}


def by_batch(call: Call) -> bool:
    """Whether a call is a batch norm that normalises by the statistics of its input, not by given ones."""
    return any(
        name in _TAKES_MOMENTS or (name == "aten.batch_norm" and _argument(args, named, 5, "training") is True)
        for name, args, named in _steps(call)
    )


def normalized(call: Call) -> Value | None:
    """What a call of a norm's module normalises; None where that cannot be told."""
    for name, args, named in _steps(call):
        if name in _TAKES_MOMENTS or name == "aten.batch_norm":
            value = _argument(args, named, 0, "input")
            if isinstance(value, Value) and value in call.inputs:
                return value
            break
    features = getattr(call.module, "num_features", None)
    fitting = [value for value in call.inputs if len(value.shape) >= 2 and value.shape[1] == features]
    return fitting[0] if len(fitting) == 1 else None


def renormalizes(call: Call) -> bool:
    """Whether a call gives a variance of its own choice, whatever the scale of its input."""
    return any(
        name in _NORMS or (name == "aten.batch_norm" and _argument(args, named, 5, "training") is True)
        for name, args, named in _steps(call)
    ) or (call.module is not None and is_batch_norm(call.module) and by_batch(call))


def live_dropout(call: Call) -> bool:
    """Whether a call drops values out: with a probability over 0 in training, or as a layer of stochastic depth."""
    for name, args, named in _steps(call):
        probability = _argument(args, named, 1, "p")
        if name in _DROPOUTS and _argument(args, named, 2, "train") is not False and probability:
            return True
        if name == "aten.scaled_dot_product_attention" and _argument(args, named, 4, "dropout_p"):
            return True
        if name.removeprefix("aten.") in RECURRENT:
            place = recurrent_dropout(args)
            layers, probability, train = args[place - 1 : place + 2]
            if train and probability and layers > 1:
                return True
    return turned_off(call)


def turned_off(call: Call) -> bool:
    """Whether a call is a layer of stochastic depth, which its own mode turns off: it draws, and has no parameters."""
    module = call.module
    if module is None or next(module.parameters(), None) is not None or not call.inputs:
        return False
    return any(name in _DRAWS for name, _, _ in _steps(call))


def dropouts_before(norm: Call) -> list[Call]:
    """What drops values out on the way to a norm, the nearest first; what another norm evens out again is left out."""
    value = normalized(norm)
    waiting = [] if value is None else [(value, norm)]
    found: list[Call] = []
    seen: set[Call] = {norm}
    while waiting:
        value, reader = waiting.pop(0)
        for call in makers(value, reader):
            if call in seen:
                continue
            seen.add(call)
            if live_dropout(call):
                found.append(call)
            inputs = call.inputs
            if renormalizes(call):
                # A norm that is computed with a sum evens out what it normalises, and not what it adds.
                evened = normalized(call) if by_batch(call) else None
                inputs = [each for each in inputs if evened is not None and each is not evened]
            waiting += [(each, call) for each in inputs]
    return found


def makers(value: Value, before: Call) -> list[Call]:
    """The calls that made what another one reads of a value: its source, and what wrote into it since."""
    written = [call for call in value.readers if value in call.writes and call.index < before.index]
    return written if value.source is None else [value.source, *written]


def reached(start: Iterable[Value], without: Collection[Call] = ()) -> set[Value]:
    """Values that depend on some others, these among them, if certain calls were not there."""
    found = set(start)
    waiting = list(found)
    while waiting:
        value = waiting.pop()
        for call in value.readers:
            if call in without:
                continue
            for given in (*call.gives, *call.writes):
                if given not in found:
                    found.add(given)
                    waiting.append(given)
    return found


def _steps(call: Call) -> Iterator[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    return ((operator_name(target), args, named) for target, args, named in call.steps)


def _argument(args: tuple[Any, ...], named: dict[str, Any], place: int, name: str) -> Any:
    return args[place] if len(args) > place else named.get(name)
