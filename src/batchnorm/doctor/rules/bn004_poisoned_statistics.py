"""poisoned-statistics: NaN, infinite, negative or absurdly large values stand in the running statistics, or reach them.

## What it does

Looks at the running mean and variance of every norm: no value may be NaN or infinite, no variance negative, and none so
large that what is normalised by it is 0 in the layer's own precision; nor may gamma and beta be NaN or infinite. With
batches also at what the first norm that is given a NaN or an infinity in training mode gets.

## Why it is bad

Evaluation divides by the running standard deviation. A NaN there makes a channel NaN, an infinite variance makes it
constant, a negative one makes it NaN as well. Training does not notice: it normalises by the batch. One batch with a
single NaN is enough, and an exponential moving average never forgets it.

## Evidence

How many channels hold NaN or infinity, the smallest variance, and the largest value. A variance over 10³⁰ counts as
poisoned: its square root is beyond what float16 holds and what any input reaches, and it comes from an overflow. Of the
batches, how many values of the input are not finite: an error, or a warning for a model that is given in evaluation
mode, and an info for a layer that leaves its statistics alone then, as this library's do.

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

The data itself is to be mended all the same: what such a layer gives for it is NaN.

## Fix safety

With batches that can be iterated again, to an end that is known, and are finite, the statistics of the norms are
taken anew over all of them (`batchnorm.recalibrate`), but for layers that are frozen, or where BN001, BN004 or BN010 is
ignored. Without, nothing is known that could be put in their place; nor is it for gamma and beta. NaN in the batches is
not mended.

## References

- [pytorch/pytorch#90342](https://github.com/pytorch/pytorch/issues/90342),
  [#115500](https://github.com/pytorch/pytorch/issues/115500)
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from ...population.layers import tracked_norms
from ..evidence import Evidence, Layer
from ..finding import Finding, Measurement
from ..mends import quoted, recalibrating, recalibration
from ..rule import Rule

LARGEST = 1e30


class PoisonedStatistics(Rule):
    """See the file's docstring."""

    code = "BN004"
    name = "poisoned-statistics"
    severity = "error"

    def check(self, evidence: Evidence) -> Iterator[Finding]:
        """One finding a layer: the worst of what is there. And one where what is not finite comes in."""
        moving = set() if evidence.model is None else {path for path, _ in tracked_norms(evidence.model)}
        for layer in evidence.layers:
            problem = _problem(layer)
            if problem is not None:
                message, measured = problem
                fix = recalibration(evidence) if layer.path in moving else None
                yield self.found(layer, message, measured, recalibrating(evidence), fix=fix)
            bad = _affine(layer)
            if bad:
                yield self.found(
                    layer,
                    f"gamma or beta is NaN or infinite in {bad} of {layer.channels} channels.",
                    {"channels that are not finite": Measurement(bad, 0)},
                    _MEND_PARAMETERS,
                )
        yield from self._input(evidence)

    def _input(self, evidence: Evidence) -> Iterator[Finding]:
        """The first norm that such batches poison; or, where all leave them out of their statistics, the first."""
        given = [
            (layer, call)
            for layer in evidence.layers
            for call in (layer.in_training.calls if layer.in_training is not None else ())
            if call.nonfinite and call.by_batch and not call.recomputed and layer.has_statistics
        ]
        open_to_it = [(layer, call) for layer, call in given if not _skips(layer)]
        for layer, call in (open_to_it or given)[:1]:
            model = evidence.model
            trains = evidence.optimizer is not None or (model is not None and any(m.training for m in model.modules()))
            told = "which training leaves out of its statistics"
            if open_to_it:
                told = "and one such batch in training makes its running statistics so for good"
            yield self.found(
                layer,
                f"{call.nonfinite} of the {math.prod(call.shape)} values of its input are NaN or infinite in batch "
                f"{call.batch}, {told}.",
                {"values that are not finite": Measurement(call.nonfinite, 0), "in batch": Measurement(call.batch)},
                _leaving_out(layer) if open_to_it else _MEND_DATA,
                severity=("error" if trains else "warning") if open_to_it else "info",
            )


_MEND_PARAMETERS = 'model.load_state_dict(torch.load("earlier.pt", weights_only=True))  # a step of training made it so'
_MEND_DATA = "batches = [batch for batch in batches if torch.isfinite(batch[0]).all()]  # of (input, target) pairs"


def _leaving_out(layer: Layer) -> str:
    if hasattr(layer.module, "nonfinite"):
        return f'model.get_submodule({quoted(layer.path)}).nonfinite = "skip"  # and mend the data'
    return 'model = batchnorm.convert(model, "batch")  # it leaves such batches out; and mend the data'


def _skips(layer: Layer) -> bool:
    return getattr(layer.module, "nonfinite", None) == "skip"


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


def _affine(layer: Layer) -> int:
    """In how many channels what a step of the optimizer writes is not finite."""
    values = [each for name in ("weight", "bias") if (each := layer.values(name)) is not None]
    return int((~np.isfinite(values)).any(axis=0).sum()) if values else 0


RULE = PoisonedStatistics()
