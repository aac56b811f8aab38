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
where its output goes into a sum, for residual branches are often initialised so.

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
from ...surgery.graph import Call
from ..evidence import Evidence, Layer
from ..finding import Finding, Measurement
from ..rule import Need, Rule

#: Shares of dead channels, from which on it is an info and a warning.
NOTABLE, HARMFUL = 0.01, 0.1

#: Of the root mean square of a layer's gammas. Gammas that are only small by chance, as those of a residual branch that
#: began at 0 are after some steps, fall under it once in ten thousand.
SMALL = 1e-4

#: The standard deviation after normalization, under which an input is constant.
CONSTANT = 0.01

# With fewer, a feature that is rare may never have come up.
_SAMPLES, _VALUES, _ROWS = 16, 1000, 256


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
                "optimizer = torch.optim.SGD(batchnorm.parameter_groups(model, weight_decay=1e-4), lr=0.01)  # a lower "
                "learning rate, and no decay on gamma; or prune them",
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
    everywhere = bool(calls) and not any(_is_added(call) for call in calls)
    return (gamma == 0) if everywhere else none


def _is_added(norm: Call) -> bool:
    """Whether something is added to a norm's output, or nobody can tell."""
    residuals = [value for value in norm.inputs if any(value.shape == given.shape for given in norm.gives)]
    if len(residuals) > 1:
        return True
    waiting = list(norm.gives)
    while waiting:
        value = waiting.pop()
        if value.escapes:
            return True
        for reader in value.readers:
            if reader.step("aten.add", "aten.sub") is not None:
                return True
            if _goes_on(reader):
                waiting += reader.gives
    return False


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
