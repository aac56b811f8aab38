"""padding-counted: padded positions enter the statistics of a norm.

## What it does

Looks at every norm of (N, C, L) input that is called without a mask. Which positions are padding it knows from a mask
in the batch (an entry with "mask" in its name, which excludes one end of the samples), at the norm's own resolution;
without one, from their looks: at the end of several samples all positions hold the same values. Where the batch has
another input that is not constant where the mask excludes positions (a signal beside a text), the mask may be none of
what reaches the norm: then it counts only where the norm's input is constant there too.

## Why it is bad

Mean and variance become a mixture of the data's and the padding's, in a proportion that depends on which lengths
happened to meet in a batch. Short samples in a batch of long ones are normalised otherwise than among themselves,
running statistics are those of no data, and the model's output changes with the amount of padding.

## Evidence

The share of positions that are padding, how far the mean moves if they are left out (the channel where it moves most,
in standard deviations) and the ratio of the variances. Found is what is beyond 0.1 standard deviations or a factor 1.2,
and beyond what leaving out as many positions at random would do: four standard errors more, for the number of values.

## Example

    >>> import torch, batchnorm
    >>> model = torch.nn.Sequential(torch.nn.Conv1d(3, 8, 3, padding=1), torch.nn.BatchNorm1d(8))
    >>> batch = torch.randn(4, 3, 50) + 3
    >>> batch[2, :, 30:] = batch[3, :, 20:] = 0
    >>> for finding in batchnorm.diagnose(model, batches=[batch], select=["BN009"]).findings:
    ...     print(finding)
    1: warning BN009 padding-counted: 24% of its positions are padding and enter the statistics: the mean moves by ...

## Use instead

    >>> class Network(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.conv, self.norm = torch.nn.Conv1d(3, 8, 3, padding=1), batchnorm.BatchNorm1d(8)
    ...     def forward(self, values, mask):
    ...         return self.norm(self.conv(values), mask=mask)
    >>> mask = torch.arange(50) < torch.tensor([50, 50, 30, 20])[:, None]
    >>> given = [{"values": batch, "mask": mask}]
    >>> batchnorm.diagnose(Network(), batches=given, select=["BN009"]).findings
    ()

## Fix safety

No fix: the mask has to be handed to the layer by the code that calls it.

## References

- [pytorch/pytorch#70529](https://github.com/pytorch/pytorch/issues/70529),
  [#25910](https://github.com/pytorch/pytorch/issues/25910)
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from ...nn._base import Norm
from ..evidence import Evidence, Layer, NormCall, Padding
from ..finding import Finding, Measurement
from ..mends import quoted
from ..rule import Need, Rule

#: How far the mean may move, in standard deviations, and the factor between the variances.
SHIFT, FACTOR = 0.1, 1.2

# Over several channels, the largest of what chance does.
_ERRORS = 4.0


class PaddingCounted(Rule):
    """See the file's docstring."""

    code = "BN009"
    name = "padding-counted"
    severity = "warning"
    needs = frozenset({Need.MODEL, Need.BATCHES})

    def check(self, evidence: Evidence) -> Iterator[Finding]:
        """One finding a layer: its worst call."""
        for layer in evidence.layers:
            calls = [] if layer.in_training is None else layer.in_training.calls
            counted = [
                (call, call.padding)
                for call in calls
                if call.padding is not None and call.by_batch and not call.recomputed and not call.nonfinite
            ]
            if sum(padding.samples for _, padding in counted) < 2:
                continue  # one sample may end so by chance
            worst = max(counted, key=lambda each: _beyond(*each))
            if _beyond(*worst) > 1:
                yield self._found(layer, *worst)

    def _found(self, layer: Layer, call: NormCall, padding: Padding) -> Finding:
        shift, factor = _limits(call, padding)
        return self.found(
            layer,
            f"{padding.share:.0%} of its positions are padding and enter the statistics: the mean moves by "
            f"{padding.mean_shift:.2g} standard deviations, the variance by a factor {padding.variance_ratio:.2g}.",
            {
                "mean shift": Measurement(padding.mean_shift, shift, unit="standard deviations"),
                "variance factor": Measurement(_factor(padding), factor),
                "share of padding": Measurement(padding.share),
                "known by": Measurement("a mask in the batch" if padding.by_mask else "equal values at the end"),
            },
            _mend(layer),
        )


def _factor(padding: Padding) -> float:
    return max(padding.variance_ratio, 1 / max(padding.variance_ratio, 1e-30))


def _limits(call: NormCall, padding: Padding) -> tuple[float, float]:
    """Of the shift and of the factor, for a call of so many values."""
    # Of n values a share p is left out at random: the mean moves by sqrt(p / ((1 - p) n)), the logarithm of the
    # variance by as much again and half of it (of normal values).
    chance = math.sqrt(padding.share / ((1 - padding.share) * max(call.values, 1)))
    return SHIFT + _ERRORS * chance, FACTOR * math.exp(_ERRORS * math.sqrt(2) * chance)


def _beyond(call: NormCall, padding: Padding) -> float:
    """How far the larger effect is beyond its limit."""
    shift, factor = _limits(call, padding)
    return max(padding.mean_shift / shift, math.log(_factor(padding)) / math.log(factor))


def _mend(layer: Layer) -> str:
    call = f"output = model.get_submodule({quoted(layer.path)})(input, mask=mask)  # in the forward that calls it"
    if isinstance(layer.module, Norm):
        return call
    return f"{call}, after model = batchnorm.convert(model, 'batch')"


RULE = PaddingCounted()
