"""accumulation-mismatch: gradients are accumulated over many backward passes, and each is normalised by few samples.

## What it does

With `accumulation_steps=`, compares the samples that the norms normalise by with those of a step of the optimizer.

## Why it is bad

Accumulating gradients makes a large batch out of small ones for the optimizer. It does not for batch norm: each
micro-batch is normalised by its own statistics, as noisy as those of training with the small batch, and learning rate
and momentum are those of the large one. 8 micro-batches of 4 are not a batch of 32: ResNet-50 on ImageNet has 27.3%
error if each norm goes by 4 samples, and 23.6% by 32. The running statistics move 8 times a step as well.

## Evidence

The samples of a call of the norms in training mode, under 16; and those of a step of the optimizer, at least 4 times as
many. Norms that do not go by their micro-batch (frozen ones, batch renormalization) and ghost batch norm are left out,
and a synchronised norm counts the samples of all ranks.

## Example

    >>> import torch, batchnorm
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
    >>> batches = [torch.randn(4, 3, 8, 8)]
    >>> for finding in batchnorm.diagnose(model, batches=batches, accumulation_steps=8, select=["BN025"]).findings:
    ...     print(finding)
    (the model itself): warning BN025 accumulation-mismatch: 1 norms go by 4 samples, and a step of the optimizer by 32.

## Use instead

Statistics that do not depend so much on the micro-batch, by batch renormalization:

    >>> mended = batchnorm.convert(model, "renorm")
    >>> batchnorm.diagnose(mended, batches=batches, accumulation_steps=8, select=["BN025"]).findings
    ()

Larger micro-batches are better still (`batchnorm.lean()` makes room for them), and frozen statistics
(`batchnorm.freeze`) where a trained network is fine-tuned. `batchnorm.accumulate_statistics(model)` around the
micro-batches of a step moves the running statistics once, by all of them; it does not change what training normalises
by.

## Fix safety

Not mended: each of these trains another function, and that is for you to choose.

## References

- [pytorch/pytorch#46516](https://github.com/pytorch/pytorch/issues/46516)
- [ultralytics/yolov5#1630](https://github.com/ultralytics/yolov5/issues/1630)
- Wu and He, Group Normalization (2018), table 2, for the errors above
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ...surgery.kinds import find
from ..evidence import Evidence, Layer
from ..finding import Finding, Measurement
from ..rule import Need, Rule

#: As for BN022: by the paper cited, the error rises by more than a point from here to half of it.
ENOUGH = 16
#: A step of the optimizer of so many micro-batches is another regime; of two it is not worth a word.
FACTOR = 4
_OTHERWISE = {"ghost", "renorm"}


class AccumulationMismatch(Rule):
    """See the file's docstring."""

    code = "BN025"
    name = "accumulation-mismatch"
    severity = "warning"
    needs = frozenset({Need.MODEL, Need.BATCHES})

    def check(self, evidence: Evidence) -> Iterator[Finding]:
        """One finding for the model."""
        steps = evidence.settings.accumulation_steps
        if steps < FACTOR:
            return
        samples = {layer.path: _samples(evidence, layer) for layer in evidence.layers}
        few = {path: count for path, count in samples.items() if 0 < count < ENOUGH}
        if not few:
            return
        least = min(few.values())
        yield self.found(
            "",
            f"{len(few)} norms go by {least} samples, and a step of the optimizer by {steps * least}.",
            {
                "samples of a norm": Measurement(least, ENOUGH, "at least"),
                "backward passes a step": Measurement(steps, FACTOR - 1),
                "norms": Measurement(len(few)),
            },
            'model = batchnorm.convert(model, "renorm")  # or larger micro-batches',
        )


def _samples(evidence: Evidence, layer: Layer) -> int:
    """Of one call in training mode, where it goes by them; else 0."""
    calls = () if layer.in_training is None else layer.in_training.first_step
    found = None if layer.module is None else find(layer.module)
    kind = "" if found is None else found.kind.name
    if not calls or not calls[0].by_batch or not calls[0].shape or kind in _OTHERWISE:
        return 0
    synced = kind in ("sync", "torch-sync") or isinstance(layer.module, torch.nn.SyncBatchNorm)
    if synced and evidence.ranks is not None:
        return sum(evidence.ranks.samples[layer.path])
    return calls[0].shape[0]


RULE = AccumulationMismatch()
