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
constant: there the bias counts, and nothing is found. Nor is it behind layers of which one has a bias and another has
none, or another one: the running mean that they share holds a part of it, and evaluation would change. A bias that
several norms subtract is found at the first, whose line mends all of them.

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

from collections.abc import Iterator, Mapping
from math import prod

from ...nn.domain import DomainNorm
from ...surgery.channels import carried, passed
from ...surgery.graph import Call, Graph, Value, operator_name
from ..evidence import Evidence, Layer
from ..finding import Finding, Measurement
from ..mends import quoted, recalibrating
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
        """One finding a norm; where several subtract one bias, at the first of them."""
        graph = evidence.graph
        assert graph is not None
        without_effect = _without_effect(evidence, graph)
        for layer in evidence.layers:
            biases = [bias for bias, norms in without_effect.items() if norms[0] is layer]
            if not biases:
                continue
            others = list(dict.fromkeys(norm.path for bias in biases for norm in without_effect[bias][1:]))
            parameters = sum(prod(each.shape) for each in biases)
            names = " and ".join(each.state for each in biases)
            who = f"it and {' and '.join(others)} subtract" if others else "it subtracts"
            yield self.found(
                layer,
                f"{who} again what {names} adds ({parameters} parameters).",
                {"parameters without effect": Measurement(parameters, 0)},
                _mend(evidence, {bias: without_effect[bias] for bias in biases}),
            )


def _without_effect(evidence: Evidence, graph: Graph) -> dict[Value, list[Layer]]:
    """The biases whose every reader feeds norms, all of which subtract them, and these norms."""
    subtracted: dict[Value, set[Call]] = {}
    norms: dict[Value, list[Layer]] = {}
    kept: set[Call] = set()
    for layer in evidence.layers:
        # A layer alone in evaluation mode was put there by the user, whom model.train() has overruled for the trace.
        fixed = evidence.model is not None and evidence.model.training and not layer.training
        calls = evidence.calls_of(layer)
        # A running mean over inputs with one bias, with another and with none holds a part of each: evaluation differs.
        mixed = layer.has_statistics and len({_bias_before(call) for call in calls}) > 1
        for call in calls:
            bias, source = _bias_before(call), _source(call)
            if bias is None or source is None:
                continue
            if fixed or mixed or layer.frozen or not by_batch(call):
                kept.add(source)
            subtracted.setdefault(bias, set()).add(source)
            if layer not in norms.setdefault(bias, []):
                norms[bias].append(layer)
    return {
        bias: norms[bias]
        for bias, sources in subtracted.items()
        # The parameter may be another layer's too, or be read by code of its own (a penalty, another function). What is
        # parametrized cannot be taken away.
        if "parametrizations." not in bias.state
        and sources == set(bias.readers)
        and sources.isdisjoint(kept)
        and not bias.escapes
    }


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


def _mend(evidence: Evidence, biases: Mapping[Value, list[Layer]]) -> str:
    """Takes each bias from the running means that hold it, and then from all the modules that have it."""
    assert evidence.model is not None
    steps, anew = [], False
    for bias, norms in biases.items():
        parameter = evidence.model.get_parameter(bias.state)
        owners = [
            f"model.get_submodule({quoted(path)}).{name}"
            for path, module in evidence.model.named_modules()
            for name, each in module.named_parameters(recurse=False, remove_duplicate=False)
            if each is parameter
        ]
        for norm in norms:
            if isinstance(norm.module, DomainNorm):
                anew = True  # it has several
            elif norm.has_statistics:
                steps.append(f"model.get_submodule({quoted(norm.path)}).running_mean -= {owners[0]}.detach()")
        steps += [f"{owner} = None" for owner in owners]
    return "; ".join([*steps, *([recalibrating(evidence)] if anew else [])])


RULE = RedundantBias()
