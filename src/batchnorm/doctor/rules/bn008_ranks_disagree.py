"""ranks-disagree: the running statistics of the processes differ, so each evaluates another function.

## What it does

Compares the running mean and variance of every norm between all processes of `torch.distributed`.

## Why it is bad

Under data parallelism gradients are averaged, and statistics are not: each rank moves its own by its part of the
batches. Validation over several ranks then mixes different models, and the checkpoint holds those of rank 0, which has
seen a fraction of the data.

## Evidence

The largest difference between the running mean of any rank and that of rank 0, in standard deviations as the layer
divides by them (eps included), over 0.1; and the ratio of the variances farthest from 1, beyond 1.25 or under 0.8. It
is an error over 0.5, or beyond 2 and under 0.5: half a standard deviation is a shift that the next activation shows.
What the last batch alone moves is under these lines: with a momentum of 0.1 and 8 values a batch, two ranks differ by
0.1 · √(2/8) = 0.05.

## Example

On two ranks, each of which has trained on data of its own:

    >>> import torch, batchnorm
    >>> def train_and_look(rank):
    ...     model = torch.nn.Sequential(torch.nn.BatchNorm1d(8))
    ...     for _ in range(50):
    ...         _ = model(torch.randn(64, 8) + rank)
    ...     return batchnorm.diagnose(model, select=["BN008"]).findings  # 0: error BN008 ranks-disagree: ...

One process alone has nothing to compare with:

    >>> train_and_look(0)
    ()

## Use instead

`batchnorm.synchronize(model)` on every rank before evaluating and saving, or layers that synchronise each batch:
`batchnorm.convert(model, "sync")`.

## Fix safety

Safe: the statistics of all ranks are merged into one (`batchnorm.synchronize`), the variance between them included.
Every rank calls `fix()`. Frozen layers, layers without a tracked batch, and statistics that are not finite are not
mended: which of them is right cannot be known.

## References

- [open-mmlab/mmdetection#4582](https://github.com/open-mmlab/mmdetection/issues/4582)
- [huggingface/pytorch-image-models#110](https://github.com/huggingface/pytorch-image-models/issues/110)
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from ...population.layers import tracked_norms
from ...population.synchronize import synchronize
from ..evidence import Evidence, Layer
from ..finding import Finding, Fix, Measurement, Subject
from ..mends import quoted
from ..rule import Need, Rule

SHIFT, FACTOR = 0.1, 1.25
LARGE_SHIFT, LARGE_FACTOR = 0.5, 2.0


class RanksDisagree(Rule):
    """See the file's docstring."""

    code = "BN008"
    name = "ranks-disagree"
    severity = "error"
    needs = frozenset({Need.RANKS})

    def check(self, evidence: Evidence) -> Iterator[Finding]:
        """One finding a layer, the same on all ranks."""
        ranks = evidence.ranks
        assert ranks is not None
        assert evidence.model is not None
        tracked = {path for path, _ in tracked_norms(evidence.model)}
        for layer in evidence.layers:
            if not layer.has_statistics:
                continue
            shift, ratio = ranks.mean_difference[layer.path], ranks.variance_ratio[layer.path]
            factor = max(ratio, 1 / ratio) if ratio else math.inf
            if shift <= SHIFT and factor <= FACTOR:
                continue
            counts = ranks.counts[layer.path]
            known = math.isfinite(shift) and math.isfinite(factor)
            mends = known and layer.path in tracked and any(counts)
            yield self.found(
                layer,
                f"the running means of {ranks.size} ranks differ by {_number(shift)} standard deviations, "
                f"and their variances by a factor of {_number(factor)}.",
                {
                    "difference of the means": Measurement(shift, SHIFT, unit="standard deviations"),
                    "factor between the variances": Measurement(factor, FACTOR),
                    "batches tracked": Measurement(", ".join(map(str, counts))),
                },
                _mend(layer, mends),
                severity="error" if shift > LARGE_SHIFT or factor > LARGE_FACTOR else "warning",
                fix=Fix("merges the statistics of all ranks (batchnorm.synchronize)", _merged, "synchronize")
                if mends
                else None,
            )


def _number(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "more than can be said (not finite)"


def _mend(layer: Layer, merged: bool) -> str:
    if merged:
        return "batchnorm.synchronize(model)  # on every rank"
    buffers = f"model.get_submodule({quoted(layer.path)}).buffers()"
    return f"[torch.distributed.broadcast(buffer, src=0) for buffer in {buffers}]  # from the rank that is right"


def _merged(subject: Subject) -> None:
    assert subject.model is not None
    synchronize(subject.model)


RULE = RanksDisagree()
