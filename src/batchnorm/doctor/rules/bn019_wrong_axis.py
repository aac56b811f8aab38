"""wrong-axis: a norm is given its features as the last dimension, and takes another one for the channels.

## What it does

Follows a norm's channels, dimension 1, back to the layer that made them. A linear layer, an embedding, a layer norm and
a recurrent layer have their features in the last dimension, (N, L, C); torch's batch norms take (N, C, L). Where both
have the same size, nothing raises. Dimension 1 is followed back as well: a linear layer may also work along the
positions of (N, C, L). It also looks at the input of a norm that did raise.

## Why it is bad

The norm computes a mean and a variance for each position, over all features: differences between features, which it
should even out, stay, and differences between positions, which mean something, go. Gamma and beta belong to positions.
And with a sequence of another length the model raises.

## Evidence

Which dimension of the norm's input holds the features of the layer before it (healthy: 1), and the input's shape. A
warning where the size fits by chance, and dimension 1 goes back to positions: of a convolution, an embedding, a
recurrent layer. An info where it goes back to the model's input, or through code that is not followed: it may be
channels. An error where the norm raised on an input whose last dimension is the one that has its number of features.
Nothing is found where a convolution or a norm before has made dimension 1 its channels; nor where the sizes differ and
fit, for then somebody wanted a statistic for each position.

## Example

    >>> import torch, batchnorm
    >>> model = torch.nn.Sequential(torch.nn.Embedding(9, 8), torch.nn.BatchNorm1d(8))
    >>> for finding in batchnorm.diagnose(model, batches=[torch.randint(9, (4, 8))], select=["BN019"]).findings:
    ...     print(finding)
    1: warning BN019 wrong-axis: its channels are dimension 1 of (4, 8, 8), and the features of 0 (Embedding) are
    dimension 2.

## Use instead

    >>> class Transposed(torch.nn.BatchNorm1d):
    ...     def forward(self, input):
    ...         return super().forward(input.transpose(1, 2)).transpose(1, 2)
    >>> model = torch.nn.Sequential(torch.nn.Embedding(9, 8), Transposed(8))
    >>> batchnorm.diagnose(model, batches=[torch.randint(9, (4, 8))], select=["BN019"]).findings
    ()

## Fix safety

No fix: the code around the norm has to change, and running statistics, gamma and beta of positions are of no use to
features.

## References

- [pytorch/pytorch#76613](https://github.com/pytorch/pytorch/issues/76613),
  [#71366](https://github.com/pytorch/pytorch/issues/71366)
"""

from __future__ import annotations

from collections.abc import Iterator

from ...nn._base import is_batch_norm
from ...surgery.channels import carried, passed
from ...surgery.graph import Call, Value, operator_name
from ...surgery.kinds import find
from ..evidence import Evidence, Layer
from ..finding import Finding, Measurement
from ..mends import quoted
from ..rule import Need, Rule
from ..walk import normalized

# How many dimensions follow the features in what these give.
_FEATURES = {
    **dict.fromkeys(("linear", "embedding", "layer_norm", "rms_norm", "lstm", "gru", "rnn_tanh", "rnn_relu"), 0),
    **{f"conv{dims}d": dims for dims in (1, 2, 3)},
    **{f"conv_transpose{dims}d": dims for dims in (1, 2, 3)},
}
# Of these, what leaves all other dimensions as they are.
_ALONG = ("linear", "layer_norm", "rms_norm")
# What works on each value by itself, or on two tensors of one shape: dimensions stay what they are.
_ELEMENTWISE = {
    *("relu", "gelu", "silu", "sigmoid", "tanh", "elu", "leaky_relu", "hardtanh", "hardswish", "hardsigmoid", "mish"),
    *("dropout", "feature_dropout", "add", "sub", "mul", "div", "prelu", "softplus", "celu", "selu", "neg", "to"),
}


class WrongAxis(Rule):
    """See the file's docstring."""

    code = "BN019"
    name = "wrong-axis"
    severity = "warning"
    needs = frozenset({Need.MODEL, Need.BATCHES})
    uses = frozenset({Need.GRAPH})

    def check(self, evidence: Evidence) -> Iterator[Finding]:
        """One finding a layer."""
        raised = _raised(evidence)
        for layer in evidence.layers:
            if layer.path in raised:
                shape = raised[layer.path]
                yield self.found(
                    layer,
                    f"it raises on input of shape {shape}, whose last dimension is the one with {shape[-1]} features.",
                    {"dimension of the features": Measurement(len(shape) - 1, 1, "equal to")},
                    _mend(layer, len(shape) - 1),
                    severity="error",
                )
                continue
            for call in evidence.calls_of(layer):
                found = _other_dimension(call)
                if found is not None:
                    source, dim, input = found
                    origin = _origin(input, 1)
                    if origin == "channels":
                        continue
                    unless = "" if origin == "positions" else ": it is the wrong one if dimension 1 are positions"
                    yield self.found(
                        layer,
                        f"its channels are dimension 1 of {input.shape}, and the features of {source} are dimension "
                        f"{dim}{unless}.",
                        {
                            "dimension of the features": Measurement(dim, 1, "equal to"),
                            "size of dimension 1": Measurement(input.shape[1]),
                            f"size of dimension {dim}": Measurement(input.shape[dim]),
                        },
                        _mend(layer, dim),
                        severity="info" if unless else "warning",
                    )
                    break


def _mend(layer: Layer, dim: int) -> str:
    norm = f"model.get_submodule({quoted(layer.path)})"
    return f"output = {norm}(input.movedim({dim}, 1)).movedim(1, {dim})  # in the forward that calls it"


def _raised(evidence: Evidence) -> dict[str, tuple[int, ...]]:
    """Norms that raised on an input whose last dimension, and not that of the channels, has their features."""
    found: dict[str, tuple[int, ...]] = {}
    for run in (evidence.training, evidence.evaluation):
        failure = None if run is None else run.failure
        if failure is None or failure.layer is None or failure.shape is None or failure.layer in found:
            continue
        layer, shape = evidence.layer(failure.layer), failure.shape
        kind = None if layer is None or layer.module is None else find(layer.module)
        if layer is None or layer.module is None or kind is None or kind.base.forward is not type(layer.module).forward:
            continue  # its class may take its input otherwise
        features = layer.module.num_features
        if len(shape) > 2 and shape[-1] == features != shape[1]:
            found[failure.layer] = shape
    return found


def _other_dimension(norm: Call) -> tuple[Call, int, Value] | None:
    """The layer before a norm, and where its features are in what the norm takes for channels first."""
    input = normalized(norm)
    if input is None or len(input.shape) < 3 or not _is_taken_as_it_is(norm, input):
        return None
    # Where all sizes are different there is nothing that could be taken for something else.
    alike = [dim for dim in range(2, len(input.shape)) if input.shape[dim] == input.shape[1]]
    for dim in alike:
        source = _made_as_features(input, dim)
        if source is not None:
            return source, dim, input
    return None


def _is_taken_as_it_is(norm: Call, input: Value) -> bool:
    """Whether a norm's class does not transpose its input itself."""
    names = [operator_name(target) for target, args, _ in norm.steps if args and args[0] is input]
    return any(name.startswith("batchnorm.") or name == "aten.batch_norm" for name in names)


def _origin(value: Value, dim: int) -> str | None:
    """What a dimension was made as: "channels" (or features) or "positions"; None where that cannot be told."""
    declared = None
    while value.source is not None:
        before = _before(value.source, value, dim)
        if not isinstance(before, tuple):
            return before or declared
        if dim == 1 and value.source.module is not None and is_batch_norm(value.source.module):
            declared = "channels"
        value, dim = before
    return declared


def _before(call: Call, value: Value, dim: int) -> tuple[Value, int] | str | None:
    """What a dimension of a value was before the call that gave it; or what that call made it as."""
    name = operator_name(call.steps[-1][0]).partition(".")[2]
    if call.module is not None and is_batch_norm(call.module):
        input = next((each for each in call.inputs if each.shape == value.shape), None)
        if input is None:
            return None
        # What a norm that transposes takes for channels is another dimension.
        return (input, dim) if dim != 1 or _is_taken_as_it_is(call, input) else "positions"
    if name in _FEATURES:
        made = dim == len(value.shape) - 1 - _FEATURES[name]
        kept = [each for each in call.inputs if each.shape[:-1] == value.shape[:-1] and name in _ALONG]
        return (kept[0], dim) if kept and not made else "channels" if made else "positions"
    if passed(call) is not None:
        place = carried(call, dim, backward=True)
        return None if place is None else (call.reads[0], place)
    same = [each for each in call.inputs if each.shape == value.shape]
    return (same[0], dim) if len(call.steps) == 1 and name in _ELEMENTWISE and same else None


def _made_as_features(value: Value, dim: int) -> Call | None:
    """The layer whose features a dimension of a value is."""
    while value.source is not None:
        call = value.source
        name = operator_name(call.steps[-1][0]).partition(".")[2]
        if name in _FEATURES:
            return call if dim == len(value.shape) - 1 - _FEATURES[name] else None
        if passed(call) is not None:
            before = carried(call, dim, backward=True)
            if before is None:
                return None
            value, dim = call.reads[0], before
            continue
        same = [each for each in call.inputs if each.shape == value.shape]
        if len(call.steps) != 1 or name not in _ELEMENTWISE or not same:
            return None
        value = same[0]
    return None


RULE = WrongAxis()
