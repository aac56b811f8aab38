"""dead-channels: channels of a norm that give the same value whatever they are given.

## What it does

Looks at gamma, and at what reaches the layer. A channel is dead if its gamma is next to 0 beside those of the other
channels, or if its input was constant over all batches.

## Why it is bad

Such a channel computes nothing: its output is beta. What the layers before and after it do with that channel costs time
and memory, and the network is smaller than it looks. Weight decay on gamma, a penalty on gamma, or one step at too high
a learning rate kills channels; a ReLU that never fires feeds the norm behind it zeros.

## Evidence

The share of dead channels: from 1% on it is an info, from 10% on a warning. A gamma counts as 0 up to 10⁻⁴ of the root
mean square of all gammas of the layer. An input counts as constant if its standard deviation after normalization is
under 0.01, its variance being that small beside eps and beside those of other channels; this is only asked of at least
16 samples and 1000 values (256 for input without positions). A layer whose gammas are all 0 is dead as a whole; not,
where what comes of its output is added to something else of the data (or blended, or stacked with it) before another
norm, for residual branches are often initialised so. Without batches, and where the model gives the output away, nobody
can tell, and nothing is found.

## Example

    >>> import torch, batchnorm
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8))
    >>> _ = model[1].weight.data[:2].fill_(1e-9)
    >>> for finding in batchnorm.diagnose(model, select=["BN020"]).findings:
    ...     print(finding)
    1: warning BN020 dead-channels: 2 of 8 channels are dead: 2 by a gamma of 0.

## Use instead

Gamma and beta without weight decay, and a lower learning rate. Channels that are dead can be pruned.

    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8))
    >>> groups = batchnorm.parameter_groups(model, weight_decay=1e-2)
    >>> optimizer = torch.optim.SGD(groups, lr=0.01)
    >>> batchnorm.diagnose(model, select=["BN020"]).findings
    ()

## Fix safety

No fix: to prune changes shapes, and to revive a channel changes what the network computes.

## References

- [pytorch/pytorch#5410](https://github.com/pytorch/pytorch/issues/5410)
- Liu et al. 2017, [arXiv 1708.06519](https://arxiv.org/abs/1708.06519), which prunes by gamma
- Goyal et al. 2017, [arXiv 1706.02677](https://arxiv.org/abs/1706.02677), section 5.1: gammas of 0 at the end of
  residual branches
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ...surgery.channels import passed
from ...surgery.follow import activation_of
from ...surgery.graph import Call, Graph, Value, operator_name
from ..evidence import Evidence, Layer
from ..finding import Finding, Measurement
from ..rule import Need, Rule
from ..walk import normalized, reached, renormalizes

#: Shares of dead channels, from which on it is an info and a warning.
NOTABLE, HARMFUL = 0.01, 0.1

#: Of the root mean square of a layer's gammas. Gammas that are only small by chance, as those of a residual branch that
#: began at 0 are after some steps, fall under it once in ten thousand.
SMALL = 1e-4

#: The standard deviation after normalization, under which an input is constant.
CONSTANT = 0.01

# With fewer, a feature that is rare may never have come up.
_SAMPLES, _VALUES, _ROWS = 16, 1000, 256

# What adds its inputs; a stack is summed sooner or later.
_SUMS = {f"aten.{name}" for name in ("add", "sub", "rsub", "lerp", "addcmul", "addcdiv", "stack")}


class DeadChannels(Rule):
    """See the file's docstring."""

    code = "BN020"
    name = "dead-channels"
    severity = "warning"
    uses = frozenset({Need.GRAPH, Need.BATCHES})

    def check(self, evidence: Evidence) -> Iterator[Finding]:
        """One finding a layer."""
        for layer in evidence.layers:
            if not layer.channels:
                continue
            by_gamma, by_input = _by_gamma(evidence, layer), _by_input(layer)
            dead = int((by_gamma | by_input).sum())
            share = dead / layer.channels
            if share < NOTABLE:
                continue
            causes = [
                f"{count} by {words}"
                for count, words in ((by_gamma.sum(), "a gamma of 0"), (by_input.sum(), "an input that is constant"))
                if count
            ]
            limit = HARMFUL if share >= HARMFUL else NOTABLE
            yield self.found(
                layer,
                f"{dead} of {layer.channels} channels are dead: {' and '.join(causes)}.",
                {
                    "dead share": Measurement(share, limit),
                    "gammas of 0": Measurement(int(by_gamma.sum())),
                    "constant inputs": Measurement(int(by_input.sum())),
                },
                "batchnorm.optim.without_decay(optimizer, model); "
                "[group.update(lr=group['lr'] / 10) for group in optimizer.param_groups]  # or prune them",
                severity="warning" if share >= HARMFUL else "info",
            )


def _by_gamma(evidence: Evidence, layer: Layer) -> np.ndarray[Any, Any]:
    gamma = layer.values("weight")
    none = np.zeros(layer.channels, dtype=bool)
    if gamma is None:
        return none
    scale = np.sqrt(np.nanmean(np.where(np.isfinite(gamma), gamma, np.nan) ** 2)) if np.isfinite(gamma).any() else 0.0
    if scale:
        return np.abs(gamma) <= SMALL * scale
    # Of a checkpoint, and without batches, nobody knows where the output goes.
    calls = evidence.calls_of(layer)
    graph = evidence.graph
    everywhere = graph is not None and bool(calls) and not any(_is_added(graph, call) for call in calls)
    return (gamma == 0) if everywhere else none


def _is_added(graph: Graph, norm: Call) -> bool:
    """Whether something is added to what comes of a norm's output, before another norm, or nobody can tell."""
    residuals = [value for value in norm.inputs if any(value.shape == given.shape for given in norm.gives)]
    if len(residuals) > 1 or any(value.escapes for value in _unchanged(norm)):
        return True
    norms = {call for call in graph.calls if call is not norm and renormalizes(call)}
    tail = reached(norm.gives, norms)
    if graph.uncertain and any(value.escapes for value in tail):
        return True
    data = reached(value for call in graph.calls for value in call.inputs if value.source is None)
    return any(
        bool(_sums(reader, value) and (data & set(reader.inputs)) - reached(norm.gives, [reader]))
        for value in tail
        for reader in value.readers
    )


def _unchanged(norm: Call) -> Iterator[Value]:
    """Its output, and what is 0 behind it where it is."""
    waiting = list(norm.gives)
    while waiting:
        value = waiting.pop()
        yield value
        waiting += [given for reader in value.readers if _goes_on(reader) for given in reader.gives]


def _sums(call: Call, value: Value) -> bool:
    """Whether a call adds a value of its inputs to others of them."""
    if renormalizes(call):
        return call.module is not None and normalized(call) not in (None, value)
    return any(operator_name(target) in _SUMS for target, _, _ in call.steps)


def _goes_on(call: Call) -> bool:
    """Whether what is 0 stays so behind it."""
    return (
        passed(call) is not None or activation_of(call) is not None or call.step("aten.dropout", "aten.mul") is not None
    )


def _by_input(layer: Layer) -> np.ndarray[Any, Any]:
    run = layer.in_training
    none = np.zeros(layer.channels, dtype=bool)
    if run is None or layer.eps is None:
        return none
    calls = [call for call in run.calls if not call.recomputed]
    flat = all(len(call.shape) == 2 for call in calls)
    samples = sum(call.shape[0] for call in calls)
    if samples < (_ROWS if flat else _SAMPLES) or run.count < (_ROWS if flat else _VALUES):
        return none
    var = run.var.numpy()
    constant = np.sqrt(var / (var + layer.eps + np.finfo(np.float64).tiny)) < CONSTANT
    # Where all channels are so small, and not for lack of input, that is a matter of eps and of the scale of the data.
    if constant.all() and var.any():
        return none
    dead: np.ndarray[Any, Any] = constant & (var <= CONSTANT**2 * var.max())
    return dead


RULE = DeadChannels()
