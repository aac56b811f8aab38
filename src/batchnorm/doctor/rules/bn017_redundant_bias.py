"""redundant-bias: a layer adds a bias that the norm behind it takes away again.

## What it does

Follows the input of each norm back to the convolution, transposed convolution or linear layer that gives it. Between
them only changes of shape that keep the channels are allowed, and nothing else may read the layer's output.

## Why it is bad

A norm that normalises by the batch subtracts each channel's mean, and a bias is part of that mean. So the output does
not depend on it, its gradient is 0 but for rounding, and it stays where it was initialised: parameters, optimizer state
and an addition for nothing. Evaluation subtracts it too, as part of the running mean.

It is an info: results are the same. Many published checkpoints have such biases and need them to be loaded.

## Evidence

How many parameters are without effect. Norms that are frozen or in evaluation mode while the rest trains subtract a
constant: there the bias counts, and nothing is found.

## Example

    >>> import torch, batchnorm
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU())
    >>> diagnosis = batchnorm.diagnose(model, batches=torch.randn(4, 3, 8, 8), select=["BN017"])
    >>> for finding in diagnosis.findings:
    ...     print(finding)
    1: info BN017 redundant-bias: it subtracts again what 0.bias adds (8 parameters).

## Use instead

`bias=False` in the layer. In a trained model the bias moves into the running mean, and evaluation stays the same:

    >>> x, before = torch.randn(2, 3, 8, 8), model.eval()
    >>> expected = model(x)
    >>> for step in diagnosis.findings[0].mend.split("; "):
    ...     print(step)
    model.get_submodule("1").running_mean -= model.get_submodule("0").bias.detach()
    model.get_submodule("0").bias = None
    >>> exec(diagnosis.findings[0].mend)
    >>> torch.allclose(model(x), expected, atol=1e-5)
    True

## Fix safety

No automatic fix. Without its bias the model has other `state_dict` keys: checkpoints no longer load strictly, and an
optimizer that holds the bias does not fit. A bias of zeros would keep the keys, and save nothing.

## References

- [milesial/Pytorch-UNet#325](https://github.com/milesial/Pytorch-UNet/issues/325)
- [huggingface/pytorch-image-models#357](https://github.com/huggingface/pytorch-image-models/issues/357)
- Ioffe and Szegedy 2015, [arXiv 1502.03167](https://arxiv.org/abs/1502.03167), section 3.2
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from ...nn.domain import DomainNorm
from ...surgery.channels import carried, passed
from ...surgery.graph import Call, Graph, Value, operator_name
from ..evidence import Evidence, Layer
from ..finding import Finding, Measurement
from ..rule import Need, Rule
from ..walk import by_batch, normalized

# The place of the bias among the arguments, and the spatial dimensions behind the channels.
_LAYERS = {
    "aten.linear": (2, 0),
    **{f"aten.conv{dims}d": (2, dims) for dims in (1, 2, 3)},
    "aten.conv_transpose1d": (2, 1),
    "aten.conv_transpose2d": (2, 2),
    "aten.conv_transpose3d": (2, 3),
}


class RedundantBias(Rule):
    """See the file's docstring."""

    code = "BN017"
    name = "redundant-bias"
    severity = "info"
    needs = frozenset({Need.MODEL, Need.GRAPH})

    def check(self, evidence: Evidence) -> Iterator[Finding]:
        """One finding a norm."""
        graph = evidence.graph
        assert graph is not None
        without_effect = set(_without_effect(evidence, graph))
        for layer in evidence.layers:
            found = [_bias_before(call) for call in evidence.calls_of(layer)]
            biases = list(dict.fromkeys(each for each in found if each is not None and each in without_effect))
            if not biases:
                continue
            parameters = sum(prod(each.shape) for each in biases)
            names = " and ".join(each.state for each in biases)
            yield self.found(
                layer,
                f"it subtracts again what {names} adds ({parameters} parameters).",
                {"parameters without effect": Measurement(parameters, 0)},
                _mend(layer, biases),
            )


def _without_effect(evidence: Evidence, graph: Graph) -> Iterator[Value]:
    """The biases whose every reader feeds norms, all of which subtract them."""
    subtracted: dict[Value, set[Call]] = {}
    kept: set[Call] = set()
    for layer in evidence.layers:
        # A layer alone in evaluation mode was put there by the user, whom model.train() has overruled for the trace.
        fixed = evidence.model is not None and evidence.model.training and not layer.training
        for call in evidence.calls_of(layer):
            bias, source = _bias_before(call), _source(call)
            if bias is None or source is None:
                continue
            if fixed or layer.frozen or not by_batch(call):
                kept.add(source)
            subtracted.setdefault(bias, set()).add(source)
    for bias, sources in subtracted.items():
        # The parameter may be another layer's too, or be read by code of its own (a penalty, another function).
        if sources == set(bias.readers) and sources.isdisjoint(kept) and not bias.escapes:
            yield bias


def _bias_before(norm: Call) -> Value | None:
    """The bias that the layer before a norm adds, where nothing but norms reads the sum."""
    source = _source(norm)
    if source is None:
        return None
    target, args, named = source.steps[-1]
    place, _ = _LAYERS[operator_name(target)]
    bias = args[place] if len(args) > place else named.get("bias")
    uses = [value for _, given, _ in source.steps for value in given if value is bias]
    return bias if isinstance(bias, Value) and bias.state and len(uses) <= 1 else None


def _source(norm: Call) -> Call | None:
    """The layer before a norm, whose channels are the norm's and whose output no other kind of call reads."""
    value, channels, reader = normalized(norm), 1, norm
    while value is not None:
        if value.escapes or any(not _is_norm_of(call, value) for call in value.readers if call is not reader):
            return None
        source = value.source
        if source is None:
            return None
        kind = _LAYERS.get(operator_name(source.steps[-1][0]))
        if kind is not None:
            return source if source.gives == [value] and channels == len(value.shape) - 1 - kind[1] else None
        through = passed(source)
        place = None if through is None else carried(source, channels, backward=True)
        if through is None or place is None:
            return None
        value, channels, reader = through[0], place, source
    return None


def _is_norm_of(call: Call, value: Value) -> bool:
    return call.module is not None and by_batch(call) and normalized(call) is value


def _mend(layer: Layer, biases: list[Value]) -> str:
    norm = f'model.get_submodule("{layer.path}")'
    owners = [each.state.rpartition(".") for each in biases]
    gone = [f'model.get_submodule("{path}").{name} = None' for path, _, name in owners]
    if not layer.has_statistics:
        return "; ".join(gone)
    if len(biases) > 1 or isinstance(layer.module, DomainNorm):
        return "; ".join([*gone, "batchnorm.recalibrate(model, batches)"])
    path, _, name = owners[0]
    return f'{norm}.running_mean -= model.get_submodule("{path}").{name}.detach(); {gone[0]}'


RULE = RedundantBias()
