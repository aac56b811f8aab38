"""dropout-before-norm: dropout feeds a norm: its input varies more in training than it does in evaluation.

## What it does

Follows the input of each norm upwards to dropout (elementwise, of channels, alpha dropout, on attention, between the
layers of an LSTM, GRU or RNN, stochastic depth in a layer of its own), through everything but other norms, which even
its effect out. Where there is some, the batches are run in training mode once with and once without it.

## Why it is bad

Dropout scales up what it keeps, so that the mean stays; the variance becomes larger, in training alone. The running
variance learns the larger one. Evaluation divides by it what varies less, and everything behind the norm is off by that
factor: often dropout and batch norm together are worse than either alone.

## Evidence

The factor between the variances of the norm's input with and without dropout: all else is the same, so that running
statistics which fit badly do not enter. It is the geometric mean over channels, less two standard errors. A warning
from 1.2, where evaluation's outputs are 9% too small, an info from 1.05; weaker dropout is not found.

## Example

    >>> import torch, batchnorm
    >>> model = torch.nn.Sequential(
    ...     torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Dropout(0.5), torch.nn.Linear(64, 64),
    ...     torch.nn.BatchNorm1d(64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    >>> batches = list(torch.randn(4, 64, 32, generator=torch.Generator().manual_seed(0)))
    >>> for finding in batchnorm.diagnose(model, batches=batches, select=["BN018"]).findings:
    ...     print(finding)
    4: warning BN018 dropout-before-norm: with 2 (Dropout) its input varies ... times as much in training as it does
    in evaluation.

## Use instead

Dropout behind the last norm:

    >>> model = torch.nn.Sequential(
    ...     torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64),
    ...     torch.nn.BatchNorm1d(64), torch.nn.ReLU(), torch.nn.Dropout(0.5), torch.nn.Linear(64, 10))
    >>> batchnorm.diagnose(model, batches=batches, select=["BN018"]).findings
    ()

## Fix safety

No automatic fix: without dropout another network is trained. In a trained one the running statistics can be taken anew
in evaluation mode, where nothing is dropped: `batchnorm.recalibrate(model, batches)`.

## References

- Li, Chen, Hu and Yang 2018, [arXiv 1801.05134](https://arxiv.org/abs/1801.05134)
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from ...surgery.graph import Call
from ..evidence import Evidence, Layer
from ..finding import Finding, Measurement
from ..mends import quoted
from ..rule import Need, Rule
from ..walk import by_batch, dropouts_before

#: Factors between variances, from which on it is an info and a warning.
NOTABLE, HARMFUL = 1.05, 1.2


class DropoutBeforeNorm(Rule):
    """See the file's docstring."""

    code = "BN018"
    name = "dropout-before-norm"
    severity = "warning"
    needs = frozenset({Need.MODEL, Need.GRAPH, Need.BATCHES})

    def check(self, evidence: Evidence) -> Iterator[Finding]:
        """One finding a norm."""
        for layer in evidence.layers:
            calls = [call for call in evidence.calls_of(layer) if by_batch(call)]
            dropped = list(dict.fromkeys(each for call in calls for each in dropouts_before(call)))
            # Without running statistics evaluation divides by what it sees.
            factor = _factor(layer) if dropped and layer.has_statistics and not layer.frozen else 1.0
            if factor < NOTABLE:
                continue
            harmful = factor >= HARMFUL
            more = f" and {len(dropped) - 1} more" if len(dropped) > 1 else ""
            yield self.found(
                layer,
                f"with {dropped[0]}{more} its input varies {factor:.2f} times as much in training as it does in "
                f"evaluation.",
                {
                    "variance with dropout over that without": Measurement(factor, HARMFUL if harmful else NOTABLE),
                    "dropouts that feed it": Measurement(len(dropped)),
                },
                _mend(dropped[0]),
                severity="warning" if harmful else "info",
            )


def _factor(layer: Layer) -> float:
    """The variance of its input with dropout over that without: what is certain of its mean over channels."""
    if layer.in_training is None or layer.without_dropout is None or not len(layer.without_dropout):
        return 1.0
    least = (layer.eps or 0.0) + torch.finfo(torch.float32).tiny
    logs = ((layer.in_training.var + least) / (layer.without_dropout + least)).log()
    logs = logs[logs.isfinite()]
    if not len(logs):
        return 1.0
    # Of one channel: as for two samples of a normal distribution.
    error = float(logs.std()) / math.sqrt(len(logs)) if len(logs) > 1 else math.sqrt(4 / layer.in_training.count)
    return math.exp(max(float(logs.mean()) - 2 * error, 0.0))


def _mend(dropout: Call) -> str:
    if isinstance(getattr(dropout.module, "p", None), float):
        return f"model.get_submodule({quoted(dropout.path)}).p = 0.0  # or put it behind the last norm"
    if isinstance(dropout.module, torch.nn.RNNBase):
        return f"model.get_submodule({quoted(dropout.path)}).dropout = 0.0  # or put it behind the last norm"
    if dropout.module is not None and dropout.path and next(dropout.module.parameters(), None) is None:
        return f"model.set_submodule({quoted(dropout.path)}, torch.nn.Identity())  # or put it behind the last norm"
    where = quoted(dropout.path) if dropout.path else "the model"
    return f"# in {where}: leave the dropout out, or put it behind the last norm"


RULE = DropoutBeforeNorm()
