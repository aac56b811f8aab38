"""shared-layer: a norm is called several times a step with inputs of different statistics.

## What it does

Compares the calls of each norm within one training step: their means and variances, each against those that all of the
calls share. Calls with the same input and recomputations by activation checkpointing do not count, calls of a
`DomainBatchNorm*` only among those in the same domain, and layers without running statistics share nothing.

## Why it is bad

Training normalises each call by its own statistics, evaluation all of them by one average. Where the calls differ (the
real and the generated batch of a discriminator, the levels of a feature pyramid, the steps of a recurrent network),
that average fits none of them, and evaluation computes another function than the one that was trained.

## Evidence

Of the call that differs most: how far its means lie from the shared ones, in standard deviations, and the factor
between its variances and the shared ones; both root mean squares over channels, less what chance explains: what varies
from batch to batch, and of fewer than 4 batches at least the error of as many independent values as there are samples.
A warning from 0.25 standard deviations or a factor 1.5, an info from 0.1 or 1.2; less is harmless, and nothing is
found. Nor is it where the squared difference is under ten times what chance gives (30 times for 4 batches of two calls,
18 for 8, since chance itself is not known better).

What shows at which size, of two calls with normal values whose variances are a factor apart (each lies half of it from
the shared one): in 4 batches of 8 images of 8 × 8 independent pixels a factor 2, of 32 a factor 1.5; in 4 batches of 32
vectors, or of images that differ as wholes, a factor 3; of 64 a factor 2 in half of the runs or more; in one batch of
64 a factor 3, likewise. Of 1152 runs with two or three equal inputs (normal, uniform and log-normal values) in 4 or 8
batches none was found, of as many in 1 or 2 batches one.

## Example

    >>> import torch, batchnorm
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
    >>> def step(model, real):
    ...     return model(real), model(2 * real + 1)  # one call with real images, one with generated ones
    >>> batches = list(torch.randn(4, 16, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    >>> diagnosis = batchnorm.diagnose(model, batches=batches, forward=step, select=["BN015"])
    >>> for finding in diagnosis.findings:
    ...     print(finding)
    1: warning BN015 shared-layer: it is called 2 times a step with different inputs: one's means lie ...

## Use instead

One call with all inputs together, a layer for each, or a layer with statistics for each:

    >>> model = batchnorm.convert(model, "domain", domains=("real", "generated"))
    >>> def step(model, real):
    ...     with batchnorm.domain(model, "real"):
    ...         first = model(real)
    ...     with batchnorm.domain(model, "generated"):
    ...         return first, model(2 * real + 1)
    >>> batchnorm.diagnose(model, batches=batches, forward=step, select=["BN015"]).findings
    ()

## Fix safety

No automatic fix: which call belongs to which domain stands in the training loop.

## References

- [pytorch/pytorch#1738](https://github.com/pytorch/pytorch/issues/1738)
- [soumith/ganhacks#52](https://github.com/soumith/ganhacks/issues/52)
- Chang et al. 2019, [arXiv 1906.03950](https://arxiv.org/abs/1906.03950)
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np

from ..evidence import Evidence, Layer, NormCall
from ..finding import Finding, Measurement
from ..mends import quoted
from ..rule import Need, Rule

_Array: TypeAlias = "np.ndarray[Any, Any]"

#: Means in standard deviations and factors of variances, from which on it is an info and a warning.
NOTABLE, HARMFUL = (0.1, 1.2), (0.25, 1.5)
#: So many times the variance that chance explains is more than chance: a chi-square of one degree of freedom (channels
#: of one layer vary together) is larger once in 600 times.
CHANCE = 10.0
#: From so many batches on, what they differ by says how much varies by chance.
BATCHES = 4
#: And so many times more per degree of freedom that this is estimated by: a ratio F(1, 6), of 4 batches of 2 calls, is
#: larger than 30 once in 600 times.
FEW = 12.0


class SharedLayer(Rule):
    """See the file's docstring."""

    code = "BN015"
    name = "shared-layer"
    severity = "warning"
    needs = frozenset({Need.MODEL, Need.BATCHES})

    def check(self, evidence: Evidence) -> Iterator[Finding]:
        """One finding a layer: its worst domain."""
        for layer in evidence.layers:
            if layer.in_training is None or layer.frozen or not layer.has_statistics:
                continue
            found = [_distance(calls, layer) for calls in _by_domain(layer.in_training.calls).values()]
            worst = max((each for each in found if each is not None), key=lambda each: max(each[1:]), default=None)
            if worst is None:
                continue
            times, shift, ratio = worst
            harmful = shift >= HARMFUL[0] or ratio >= HARMFUL[1]
            limits = HARMFUL if harmful else NOTABLE
            if shift < limits[0] and ratio < limits[1]:
                continue
            yield self.found(
                layer,
                f"it is called {times} times a step with different inputs: one's means lie {shift:.2f} standard "
                f"deviations from the running statistics that all share, and its variances are off by a factor "
                f"{ratio:.2f}.",
                {
                    "calls a step": Measurement(times, 1),
                    "mean shift": Measurement(shift, limits[0], unit="standard deviations"),
                    "variance factor": Measurement(ratio, limits[1]),
                },
                f'model = batchnorm.convert(model, "domain", where=lambda path, _: path == {quoted(layer.path)})',
                severity="warning" if harmful else "info",
            )


def _by_domain(calls: Sequence[NormCall]) -> dict[str | None, list[NormCall]]:
    found: dict[str | None, list[NormCall]] = defaultdict(list)
    for call in calls:
        usable = call.by_batch and not call.recomputed and not call.same_input and not call.nonfinite
        if usable and len(call.mean):
            found[call.domain].append(call)
    return found


def _distance(calls: Sequence[NormCall], layer: Layer) -> tuple[int, float, float] | None:
    """How many calls a step, and of the worst one the shift of the means and the factor of the variances."""
    steps: dict[int, list[NormCall]] = defaultdict(list)
    for call in calls:
        steps[call.batch].append(call)
    times = min((len(step) for step in steps.values()), default=0)
    if times < 2:
        return None
    # (batches, calls, C)
    mean, var = (
        np.array([[getattr(call, name).numpy() for call in step[:times]] for step in steps.values()])
        for name in ("mean", "var")
    )
    var = var + (layer.eps or 0.0) + np.finfo(np.float32).tiny
    samples = min(call.shape[0] for call in calls)
    shared = var.mean((0, 1))
    # Of as many independent values as there are samples: a mean has 1 / n of the variance. A log variance has 2 / n for
    # normal values, and more for those with longer tails.
    shift = _beyond_chance(mean / np.sqrt(shared), 1 / samples)
    log_ratio = _beyond_chance(np.log(var), 4 / samples)
    return times, float(shift.max()), math.exp(float(log_ratio.max()))


def _beyond_chance(values: _Array, variance_of_one: float) -> _Array:
    """For each call, the root mean square over channels of its distance from the mean call; 0 where that may be chance.

    Args:
        values: (batches, calls, C).
        variance_of_one: So much one batch's value varies by chance, or more; asked where batches are few.
    """
    batches, times, _ = values.shape
    squares = ((values.mean(0) - values.mean((0, 1))) ** 2).mean(-1)
    observed = float(values.var(0, ddof=1).mean()) if batches > 1 else 0.0
    if batches < BATCHES:
        varies, sure = max(observed, variance_of_one), CHANCE
    else:
        varies, sure = observed, CHANCE * (1 + FEW / (times * (batches - 1)))
    chance = varies / batches * (1 - 1 / times)
    excess: _Array = np.where(squares > sure * chance, np.sqrt(np.maximum(squares - chance, 0.0)), 0.0)
    return excess


RULE = SharedLayer()
