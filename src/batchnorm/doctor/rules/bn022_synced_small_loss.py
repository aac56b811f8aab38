"""synced-small-loss: several ranks normalise each by its own few samples, though together they have enough.

## What it does

Under `torch.distributed`, looks at how many samples each call of a norm in training mode normalises by on each rank,
where its layers do not synchronise.

## Why it is bad

A batch of 32 on 8 ranks is 4 samples for each norm. The noise of such statistics is what costs accuracy, not the size
of the whole batch: ResNet-50 on ImageNet has 23.7% error with 16 samples a rank, 24.8% with 8, 27.3% with 4 and 34.7%
with 2, at the learning rate that fits the whole batch.

## Evidence

The samples of a call on the rank with the fewest, under 16, beside those of all ranks together. Ghost batch norm and
batch renormalization, which are made for few values, and frozen layers are left out.

## Example

On each of 4 ranks:

    >>> import torch, batchnorm
    >>> def look():
    ...     model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
    ...     batches = [torch.randn(4, 3, 8, 8)]
    ...     return batchnorm.diagnose(model, batches=batches, select=["BN022"])  # 1: warning BN022 ...

One process alone has nothing to synchronise with:

    >>> look().skipped
    {'BN022': 'this is not one of several processes (torch.distributed)'}

## Use instead

    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
    >>> model = batchnorm.convert(model, "sync")  # before DistributedDataParallel

## Fix safety

Not mended: a synchronised norm exchanges numbers in every forward and backward pass, which costs time, and every rank
must then run every layer as often as the others. That is for you to decide.

## References

- [facebookresearch/moco#46](https://github.com/facebookresearch/moco/issues/46)
- Wu and He, Group Normalization (2018), table 2, for the errors above
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ...surgery.kinds import find
from ..evidence import Evidence, Layer
from ..finding import Finding, Measurement
from ..rule import Need, Rule

#: By the paper cited above, ImageNet's error rises by more than a point from here to half of it.
ENOUGH = 16
_OTHERWISE = {"sync", "torch-sync", "ghost", "renorm"}


class SyncedSmallLoss(Rule):
    """See the file's docstring."""

    code = "BN022"
    name = "synced-small-loss"
    severity = "warning"
    needs = frozenset({Need.RANKS, Need.BATCHES})

    def check(self, evidence: Evidence) -> Iterator[Finding]:
        """One finding for the model, the same on all ranks."""
        ranks = evidence.ranks
        assert ranks is not None
        fewest = {
            layer.path: min(ranks.samples[layer.path])
            for layer in evidence.layers
            if _by_own_batch(layer) and 0 < min(ranks.samples[layer.path]) < ENOUGH
        }
        if not fewest:
            return
        path = min(fewest, key=lambda each: fewest[each])
        samples, together = fewest[path], sum(ranks.samples[path])
        yield self.found(
            "",
            f"{len(fewest)} norms go by {samples} samples a rank, of {together} that the {ranks.size} ranks have.",
            {
                "samples a rank": Measurement(samples, ENOUGH, "at least"),
                "samples on all ranks": Measurement(together),
                "values of a channel a rank": Measurement(min(ranks.values[path])),
                "norms that do not synchronise": Measurement(len(fewest)),
            },
            'model = batchnorm.convert(model, "sync")  # before DistributedDataParallel',
        )


def _by_own_batch(layer: Layer) -> bool:
    if layer.in_training is None or isinstance(layer.module, torch.nn.SyncBatchNorm):
        return False
    found = None if layer.module is None else find(layer.module)
    calls = layer.in_training.first_step
    return bool(calls) and calls[0].by_batch and (found is None or found.kind.name not in _OTHERWISE)


RULE = SyncedSmallLoss()
