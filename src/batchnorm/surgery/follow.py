"""What follows a norm: a sum, an activation, both, or something that it cannot be computed with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..activation import IDENTITY, Activation
from .graph import Call, Graph, Value

__all__ = ["Following", "activation_of", "what_follows"]


@dataclass(frozen=True)
class Following:
    """What a norm can be computed with.

    Attributes:
        words: That, such as ``"add + relu"``; or why there is nothing.
        residual: Whether a tensor is added.
        activation: The activation; the identity where there is a sum alone; None where nothing fuses.
    """

    words: str
    residual: bool = False
    activation: Activation | None = None


# The arguments of each activation's operator after the input, as Activation names them.
_PARAMETERS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("relu", "relu6", "silu", "hardswish", "sigmoid", "tanh"), ()),
    "leaky_relu": ("negative_slope",),
    "hardtanh": ("min_val", "max_val"),
    "elu": ("alpha", "scale", "input_scale"),
}


def activation_of(call: Call) -> Activation | None:
    """The activation that a call computes, and nothing else; None if it is another or none."""
    if len(call.steps) != 1:
        return None
    gelu = call.step("aten.gelu")
    if gelu is not None:
        return Activation("gelu_tanh" if gelu[1].get("approximate") == "tanh" else "gelu")
    for name, parameters in _PARAMETERS.items():
        step = call.step(f"aten.{name}")
        if step is not None:
            given = dict(zip(parameters, step[0][1:], strict=False)) | step[1]
            scales = given.pop("scale", 1), given.pop("input_scale", 1)
            numbers = all(isinstance(value, int | float) for value in given.values())
            return Activation(name, **given) if scales == (1, 1) and numbers else None
    return None


def what_follows(norm: Call, graph: Graph) -> Following:
    """What a call of a norm can be computed with.

    Args:
        norm: The call.
        graph: Where it stands.
    """
    outputs = [value for value in norm.gives if not value.state]
    if not outputs:
        return Following("nothing reads its output")
    output, before = outputs[0], norm
    residual: Value | None = None
    viewed = False
    while True:
        if output.escapes:
            why = "its output leaves the model"
            if graph.uncertain:
                why = "its output is read by code that does not trace"
            break
        if len(output.readers) != 1:
            why = f"its output is read by {' and '.join(map(str, output.readers)) or 'nothing'}"
            break
        reader = output.readers[0]
        activation = activation_of(reader)
        if activation is not None and not (viewed and reader.writes):
            return _unless_modified(norm, before, reader, residual, activation, graph)
        passed = _passes(reader)
        if passed is not None:
            before, output, viewed = reader, passed, viewed or passed.shape != output.shape
            continue
        other = None if residual is not None or viewed else _other_side(reader, output)
        if isinstance(other, Value):
            residual, before, output = other, reader, reader.gives[0]
            continue
        why = other if isinstance(other, str) else f"followed by {reader}"
        break
    if residual is not None and not output.escapes:
        return _unless_modified(norm, before, before, residual, IDENTITY, graph)
    return Following(why)


# An activation may be computed before these as well as after.
_VIEWS = (
    *("aten.view", "aten.view_as", "aten.reshape", "aten.reshape_as", "aten.flatten", "aten.unflatten"),
    *("aten.transpose", "aten.permute", "aten.unsqueeze", "aten.squeeze"),
)


def _passes(reader: Call) -> Value | None:
    """What a view gives, or a dropout that drops nothing: the elements that it was given."""
    if len(reader.steps) != 1 or len(reader.gives) != 1:
        return None
    if reader.step(*_VIEWS) is not None:
        return reader.gives[0]
    step = reader.step("aten.dropout", "aten.feature_dropout", "aten.alpha_dropout")
    if step is None:
        return None
    _, probability, training = step[0]
    return reader.gives[0] if probability == 0 or not training else None


def _other_side(reader: Call, output: Value) -> Value | str | None:
    """The tensor that is added to a norm's output; why that does not fuse; or None, if this is no sum."""
    step = reader.step("aten.add")
    if step is None or reader.module is not None:
        return None
    (left, right, *_), named = step
    if not (isinstance(left, Value) and isinstance(right, Value)) or left is right or not reader.gives:
        return None
    other = right if left is output else left
    reasons = (
        (named.get("alpha", 1) != 1, "the sum after it has a factor alpha"),
        (other.shape != output.shape, f"the sum after it broadcasts {other.shape} and {output.shape}"),
        (other.dtype != output.dtype, f"the sum after it has dtypes {output.dtype} and {other.dtype}"),
        (left is not output and _may_wait(other), f"it is the other side of the sum that {other.source} fuses with"),
        (left is not output and bool(reader.writes), "its output is added to another tensor in place"),
    )
    return next((why for holds, why in reasons if holds), other)


def _may_wait(value: Value) -> bool:
    """Whether a value is the output of a norm, which takes the sum itself where it stands on its left."""
    source = value.source
    return (
        source is not None
        and any(source.step(name) is not None for name in ("aten.batch_norm", "batchnorm.forward"))
        and len(value.readers) == 1
        and not value.escapes
    )


def _unless_modified(
    norm: Call, summed: Call, last: Call, residual: Value | None, activation: Activation, graph: Graph
) -> Following:
    """What was found, unless the norm's input or the residual changes before it would be computed."""
    words = " + ".join(([] if residual is None else ["add"]) + ([] if activation == IDENTITY else [_words(activation)]))
    watched = [value for value in [*norm.inputs, residual] if value is not None]
    for writer in _between(graph, norm, last):
        if any(value in writer.writes for value in watched) and writer is not summed:
            return Following(f"{writer} modifies a tensor in place before {words}")
    return Following(words, residual is not None, activation)


def _between(graph: Graph, first: Call, last: Call) -> Iterator[Call]:
    return (call for call in graph.calls if first.index < call.index < last.index)


def _words(activation: Activation) -> str:
    text = repr(activation)[len("Activation(") : -1]
    name, _, parameters = text.partition(", ")
    return name.strip("'") + (f"({parameters})" if parameters else "")
