"""saturated-activation: most of what follows a norm sits where the activation behind it is flat.

## What it does

Finds the activation that reads a norm's output, or that the layer itself computes, and counts in training mode how much
of what it is given lies in its flat ends. It looks at sigmoid, tanh, hardsigmoid, hardtanh, hardswish, relu6 (its upper
end), silu, gelu and elu. ReLU is none of them: half of what it is given is meant to be flat.

## Why it is bad

In a flat end the derivative is next to 0, so that no gradient comes back through it: neither the layers below learn nor
gamma and beta themselves, and the layer stays there. To keep activations out of their flat ends is what batch
normalization was made for; only a large gamma or beta can bring its output back there.

## Evidence

The share of values at which the derivative is under 5% of its maximum: beyond ±4.36 for sigmoid and ±2.18 for tanh,
under −3 for hardswish, and so on. Over 50% is a warning: of standardised values it is under 3% for each of these
activations but hardtanh, where it is 32%. It is an info where the activation's output multiplies another tensor: a gate
may be shut on purpose. Where it leaves the model nothing is found: a classifier that is sure of itself looks like that.

## Example

    >>> import torch, batchnorm
    >>> model = torch.nn.Sequential(
    ...     torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Sigmoid(), torch.nn.Linear(8, 2)
    ... )
    >>> _ = model[1].bias.data.fill_(-9.0)
    >>> for finding in batchnorm.diagnose(model, batches=[torch.randn(32, 4)], select=["BN027"]).findings:
    ...     print(finding)
    1: warning BN027 saturated-activation: 100% of what it gives to sigmoid lies where that is flat.

## Use instead

    >>> _ = model[1].bias.data.fill_(0.0)
    >>> batchnorm.diagnose(model, batches=[torch.randn(32, 4)], select=["BN027"]).findings
    ()

## Fix safety

No fix: with another gamma or beta it is another function, which has to be trained on from there.

## References

- Ioffe and Szegedy 2015, [arXiv 1502.03167](https://arxiv.org/abs/1502.03167), sections 1 and 3
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import torch

from ...activation import IDENTITY, Activation
from ...surgery.channels import passed
from ...surgery.follow import activation_of
from ...surgery.graph import Call
from ...surgery.kinds import activation_of as own_activation_of
from ..evidence import Evidence, Layer
from ..finding import Finding, Measurement
from ..histogram import Histogram
from ..mends import quoted
from ..rule import Need, Rule

#: Of the derivative's maximum: under it an activation is flat.
FLAT = 0.05

#: The largest healthy share of values where it is.
MOST = 0.5

# Their lower half is flat by design.
_MEANT = {"identity", "relu", "leaky_relu"}
_MULTIPLIES = {"aten.mul", "aten.mul_"}


class SaturatedActivation(Rule):
    """See the file's docstring."""

    code = "BN027"
    name = "saturated-activation"
    severity = "warning"
    needs = frozenset({Need.MODEL, Need.GRAPH, Need.BATCHES})

    def check(self, evidence: Evidence) -> Iterator[Finding]:
        """One finding a layer."""
        for layer in evidence.layers:
            found = _activation(evidence, layer)
            if found is None:
                continue
            name, (low, high), given, last = found
            share = given.share(-math.inf, low) + given.share(high, math.inf)
            if share <= MOST or any(value.escapes for value in last.gives):
                continue
            gates = any(reader.step(*_MULTIPLIES) is not None for value in last.gives for reader in value.readers)
            yield self.found(
                layer,
                f"{share:.0%} of what it gives to {name} lies where that is flat.",
                {
                    "flat share": Measurement(share, MOST),
                    "flat under": Measurement(low),
                    "flat over": Measurement(high),
                    **_affine(layer),
                },
                "[torch.nn.init.constant_(p, v) for p, v in zip("
                f"model.get_submodule({quoted(layer.path)}).parameters(), (1.0, 0.0))]  "
                "# and train on, at a lower learning rate",
                severity="info" if gates else None,
            )


def _affine(layer: Layer) -> dict[str, Measurement]:
    measured = {}
    for name, tensor in (("largest |gamma|", layer.values("weight")), ("largest |beta|", layer.values("bias"))):
        if tensor is not None and len(tensor):
            measured[name] = Measurement(float(np.abs(tensor).max()))
    return measured


def _activation(evidence: Evidence, layer: Layer) -> tuple[str, tuple[float, float], Histogram, Call] | None:
    """The activation that alone reads what a norm gives: its name and flat ends, what it is given, and its call."""
    calls, run = evidence.calls_of(layer), layer.in_training
    if run is None or not calls:
        return None
    own = own_activation_of(layer.module)
    if own != IDENTITY:
        ends = _flat_ends(own)
        return None if run.activated is None or ends is None else (own.name, ends, run.activated, calls[-1])
    found = [_reader(call) for call in calls]
    if any(each is None for each in found) or len({each[:2] for each in found if each is not None}) != 1:
        return None
    assert found[0] is not None
    return *found[0][:2], run.output, found[0][2]


def _reader(norm: Call) -> tuple[str, tuple[float, float], Call] | None:
    call = norm
    while len(call.gives) == 1 and len(call.gives[0].readers) == 1 and not call.gives[0].escapes:
        call = call.gives[0].readers[0]
        if call.step("aten.hardsigmoid") is not None and len(call.steps) == 1:
            return "hardsigmoid", (-3.0, 3.0), call
        activation = activation_of(call)
        if activation is not None:
            ends = _flat_ends(activation)
            # torch has no operator for relu6.
            name = "relu6" if activation == Activation("hardtanh", min_val=0.0, max_val=6.0) else activation.name
            return None if ends is None else (name, ends, call)
        if passed(call) is None:
            break
    return None


@cache
def _flat_ends(activation: Activation) -> tuple[float, float] | None:
    """Below the first and above the second its derivative is next to nothing; infinite where it is not so."""
    if activation.name in _MEANT:
        return None
    edge = 16.0 + max((abs(each) for each in activation.parameters), default=0.0)
    z = torch.linspace(-edge, edge, 2**15 + 1, dtype=torch.float64, device="cpu")
    slope = activation.derivative(z).abs()
    steep: Any = torch.nonzero(slope >= FLAT * slope.max()).flatten()
    low, high = float(z[steep[0]]), float(z[steep[-1]])
    low = -math.inf if low == -edge or _is_ramp(activation) else low
    return low, math.inf if high == edge else high


def _is_ramp(activation: Activation) -> bool:
    """Whether it is ReLU with an upper end."""
    return activation.name == "relu6" or (activation.name == "hardtanh" and activation.parameters[0] == 0)


RULE = SaturatedActivation()
