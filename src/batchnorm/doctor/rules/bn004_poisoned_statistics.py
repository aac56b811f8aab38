"""poisoned-statistics: NaN, infinite, negative or absurdly large values stand in the running statistics.

## What it does

Looks at the running mean and variance of every norm: no value may be NaN or infinite, no variance negative, and none so
large that what is normalised by it is 0 in the layer's own precision.

## Why it is bad

Evaluation divides by the running standard deviation. A NaN there makes a channel NaN, an infinite variance makes it
constant, a negative one makes it NaN as well. Training does not notice: it normalises by the batch. One batch with a
single NaN is enough, and an exponential moving average never forgets it.

## Evidence

How many channels hold NaN or infinity, the smallest variance, and the largest value. A variance over 10³⁰ counts as
poisoned: its square root is beyond what float16 holds and what any input reaches, and it comes from an overflow.

## Example

    >>> import torch, batchnorm
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8))
    >>> _ = model(torch.full((2, 4), float("nan")))
    >>> for finding in batchnorm.diagnose(model, select=["BN004"]).findings:
    ...     print(finding)
    1: error BN004 poisoned-statistics: 8 of 8 channels have running statistics that are NaN or infinite.

## Use instead

This library's layers leave their statistics alone where a batch is not finite.

    >>> model = batchnorm.convert(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8)), "batch")
    >>> _ = model(torch.full((2, 4), float("nan")))
    >>> batchnorm.diagnose(model, select=["BN004"]).findings
    ()

## Fix safety

With batches that can be iterated again, the statistics of the model's norms are taken anew over all of them
(`batchnorm.recalibrate`). Without, nothing is known that could be put in their place.

## References

- [pytorch/pytorch#90342](https://github.com/pytorch/pytorch/issues/90342),
  [#115500](https://github.com/pytorch/pytorch/issues/115500)
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..evidence import Evidence, Layer
from ..finding import Finding, Measurement
from ..mends import recalibration
from ..rule import Rule

LARGEST = 1e30


class PoisonedStatistics(Rule):
    """See the file's docstring."""

    code = "BN004"
    name = "poisoned-statistics"
    severity = "error"

    def check(self, evidence: Evidence) -> Iterator[Finding]:
        """One finding a layer: the worst of what is there."""
        for layer in evidence.layers:
            problem = _problem(layer)
            if problem is not None:
                message, measured = problem
                mend = "batchnorm.recalibrate(model, batches)"
                yield self.found(layer, message, measured, mend, fix=recalibration(evidence))


def _problem(layer: Layer) -> tuple[str, dict[str, Measurement]] | None:
    mean, var = layer.values("running_mean"), layer.values("running_var")
    if mean is None or var is None or not len(mean):
        return None
    bad = int((~np.isfinite(mean) | ~np.isfinite(var)).sum())
    if bad:
        measured = {"channels that are not finite": Measurement(bad, 0)}
        return f"{bad} of {len(mean)} channels have running statistics that are NaN or infinite.", measured
    least, most = float(var.min()), float(max(var.max(), np.abs(mean).max()))
    if least < 0:
        return f"a running variance is negative: {least:.3g}.", {
            "smallest variance": Measurement(least, 0.0, "at least")
        }
    if most > LARGEST:
        return f"the running statistics reach {most:.3g}.", {"largest value": Measurement(most, LARGEST)}
    return None


RULE = PoisonedStatistics()
