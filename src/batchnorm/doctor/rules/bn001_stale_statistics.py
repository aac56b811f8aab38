"""stale-statistics: evaluation normalises by running statistics that are not those of the layer's input.

## What it does

Runs the batches in training and in evaluation mode, and compares the mean and variance of what reaches each norm with
its running statistics. A layer behind a stale one gets shifted input in evaluation, and is not to blame for it: found
is a layer whose statistics fit its input in neither mode. Where every layer's statistics fit its input in training, and
evaluation feeds them something else all the same, that is one finding of the whole model.

## Why it is bad

In training a norm uses the batch's own statistics, in evaluation the running ones. Where these differ, evaluation is
not the function that was trained: a validation loss that jumps, or is far above that of training on the same data. It
comes from averaged weights (EMA, SWA) with the statistics of others, weights without their buffers, data that are
scaled or normalised otherwise than in training, a momentum too small for the number of steps, and a learning rate so
high that the average trails the weights.

## Evidence

For each channel, how far the mean is off in running standard deviations, and the variance as a factor (eps in both). A
channel is stale beyond 0.5 standard deviations or a factor 2, a layer where a quarter of its channels are. Three
standard errors are taken off first: of the moments of these batches and of a running average of such, judged by how
the batches differ, or, of fewer than 4, by the number of samples.

It is an error where a quarter of the channels are off by over 2 standard deviations or a factor 10, or where a loss is
given and evaluation's is clearly worse on the same batches (by a fifth, and three standard errors); else a warning.
The whole model is stale where a quarter of its norms have half of their channels off by over 1 standard deviation or a
factor 4 in evaluation (0.5 and a factor 2 where its loss is clearly worse), and no layer is by itself.

Measured on seven small networks (MobileNetV2, RegNet and LeViT of `transformers`, DenseNet-121, UNet and SegResNet of
`monai`, and a plain one), after 100 steps at learning rate 0.02 with momentum 0.9: found are RegNet as a whole (its
loss is 0.58 in training mode and 1.40 in evaluation) and one layer of SegResNet (0.66 and 1.43). After 30 more steps at
a tenth of that rate, or after `recalibrate`, nothing is found in any of them.

Norms that still have the statistics of a new layer are those of BN010; values that are not finite are BN004's.

## Example

    >>> import torch, batchnorm
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8))
    >>> images = [255 * torch.rand(64, 4) for _ in range(8)]
    >>> for batch in 10 * images:
    ...     _ = model(batch / 255)
    >>> diagnosis = batchnorm.diagnose(model, batches=images, select=["BN001"])  # they were scaled in training
    >>> for finding in diagnosis.findings:
    ...     print(finding)
    1: error BN001 stale-statistics: 8 of 8 channels have other running statistics than their input (mean off by ...

## Use instead

Give the data that evaluation will see, as training prepared them; and if they are right, take the statistics anew.

    >>> batchnorm.diagnose(model, batches=[batch / 255 for batch in images], select=["BN001"]).findings
    ()
    >>> _ = diagnosis.fix()
    >>> batchnorm.diagnose(model, batches=images, select=["BN001"]).findings
    ()

## Fix safety

The statistics of the model's norms are taken anew over all batches (`batchnorm.recalibrate`). That is right if these
batches are the data that the model is for, and prepared as in training. Layers whose own `forward` uses the running
statistics in training too keep theirs. A finding of the whole model has a fix where the batches have at least 32
samples: below that one pass over them is too coarse, and the mend goes layer by layer.

## References

- [pytorch/pytorch#4741](https://github.com/pytorch/pytorch/issues/4741),
  [#5406](https://github.com/pytorch/pytorch/issues/5406)
- Wu & Johnson, "Rethinking 'Batch' in BatchNorm", [arXiv 2105.07576](https://arxiv.org/abs/2105.07576), section 3
- Izmailov et al., "Averaging Weights Leads to Wider Optima", [arXiv 1803.05407](https://arxiv.org/abs/1803.05407)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ...population.layers import tracked_norms
from ..drift import Drift, drift
from ..evidence import Evidence, Layer
from ..finding import Finding, Measurement
from ..mends import recalibrating, recalibration
from ..rule import Need, Rule
from .bn010_default_statistics import is_default

#: A channel is stale beyond these, a layer where this share of its channels is.
SHIFT, RATIO, SHARE = 0.5, 2.0, 0.25
#: So far off that the outputs are wrong.
FAR_SHIFT, FAR_RATIO = 2.0, 10.0
#: A layer gets other input in evaluation where half of its channels are beyond these; the model, where so many do.
FED_SHIFT, FED_RATIO, FED_CHANNELS, FED_LAYERS = 1.0, 4.0, 0.5, 0.25
#: Evaluation's loss is clearly worse from this share of training's on, and three standard errors.
WORSE, ERRORS = 0.2, 3.0
#: From so many samples a batch on, one pass of recalibrate normalises by the batch.
ONE_PASS = 32
#: Of the initial statistics, so much must be left to be worth a word.
LEFT = 0.05


@dataclass(frozen=True)
class _Seen:
    layer: Layer
    training: Drift
    evaluation: Drift

    @property
    def stale(self) -> bool:
        least = SHARE * self.training.channels
        return min(self.training.beyond(SHIFT, RATIO), self.evaluation.beyond(SHIFT, RATIO)) > least

    def fed_otherwise(self, shift: float, ratio: float) -> bool:
        return self.evaluation.beyond(shift, ratio) > FED_CHANNELS * self.evaluation.channels


class StaleStatistics(Rule):
    """See the file's docstring."""

    code = "BN001"
    name = "stale-statistics"
    severity = "warning"
    needs = frozenset({Need.BATCHES})

    def check(self, evidence: Evidence) -> Iterator[Finding]:
        """One finding for each layer that is stale by itself; else perhaps one for the model."""
        assert evidence.model is not None
        moving = {path for path, _ in tracked_norms(evidence.model)}
        seen = [each for layer in evidence.layers if (each := _seen(layer, moving)) is not None]
        stale = [each for each in seen if each.stale]
        words, worse = _losses(evidence)
        # Where the loss shows it, less of a difference is enough.
        least = (SHIFT, RATIO) if worse else (FED_SHIFT, FED_RATIO)
        behind = [each for each in seen if each.fed_otherwise(*least) and not each.stale]
        for number, each in enumerate(stale):
            layer, found = each.layer, each.training
            far = found.beyond(FAR_SHIFT, FAR_RATIO)
            measured = {
                **_measured(found, SHIFT, RATIO),
                "stale channels": Measurement(found.beyond(SHIFT, RATIO), SHARE * found.channels),
                "channels far off": Measurement(far, SHARE * found.channels),
            }
            if not number and behind:
                measured["other norms that get shifted input for it"] = Measurement(len(behind), 0)
            yield self.found(
                layer,
                f"{found.beyond(SHIFT, RATIO)} of {found.channels} channels have other running statistics than their "
                f"input ({_typical(found)}){_left(layer)}{words}.",
                measured,
                recalibrating(evidence),
                severity="error" if worse or far > SHARE * found.channels else "warning",
                fix=recalibration(evidence) if layer.path in moving else None,
            )
        # It was run with all in training mode: behind a norm that is kept in evaluation mode, that tells nothing.
        held = any(
            layer.has_statistics and layer.frozen is None and layer.path not in moving for layer in evidence.layers
        )
        if behind and not stale and not held and len(behind) > FED_LAYERS * len(seen):
            yield self._of_model(evidence, behind, len(seen), least)

    def _of_model(
        self, evidence: Evidence, behind: Sequence[_Seen], layers: int, least: tuple[float, float]
    ) -> Finding:
        words, worse = _losses(evidence)
        worst = max(behind, key=lambda each: each.evaluation.beyond(*least) / each.evaluation.channels)
        sizes = [count for count in evidence.evaluation.samples if count is not None] if evidence.evaluation else []
        one_pass = bool(sizes) and sizes[0] >= ONE_PASS
        order = "" if one_pass else ', order="layer-by-layer"'
        return self.found(
            "",
            f"in evaluation {len(behind)} of {layers} norms get other input than their running statistics are of (at "
            f"{worst.layer.path or 'the model itself'}, {_typical(worst.evaluation)}), although each layer's fit its "
            f"input in training: {_otherwise(evidence)}{words}.",
            {
                "norms with other input": Measurement(len(behind), FED_LAYERS * layers),
                **_measured(worst.evaluation, *least),
            },
            recalibrating(evidence, order),
            severity="error" if worse else "warning",
            fix=recalibration(evidence) if one_pass else None,
        )


def _otherwise(evidence: Evidence) -> str:
    """What may make evaluation feed a layer something else."""
    assert evidence.model is not None
    dropout = any(
        isinstance(module, torch.nn.modules.dropout._DropoutNd) and module.p > 0 for module in evidence.model.modules()
    )
    return f"small differences{', and dropout (BN018),' if dropout else ''} add up through depth"


def _seen(layer: Layer, moving: set[str]) -> _Seen | None:
    """How a layer's statistics fit; None where they are not used, or another rule's."""
    one, other = layer.in_training, layer.in_evaluation
    # One that is frozen uses its statistics in training too, unless it is so by its momentum.
    if one is None or other is None or is_default(layer) or not (layer.path in moving or layer.momentum == 0):
        return None
    if not all(call.by_batch for call in one.calls) or any(call.by_batch for call in other.calls):
        return None
    training, evaluation = drift(layer, one), drift(layer, other)
    return None if training is None or evaluation is None else _Seen(layer, training, evaluation)


def _measured(found: Drift, shift: float, ratio: float) -> dict[str, Measurement]:
    return {
        "largest shift of the mean": Measurement(_largest_shift(found), shift, unit="standard deviations"),
        "largest factor of the variance": Measurement(_largest_ratio(found), ratio),
        "median shift of the mean": Measurement(found.typical_shift, unit="standard deviations"),
        "median factor of the variance": Measurement(found.typical_ratio),
        "standard error of the shift": Measurement(found.shift_error, unit="standard deviations"),
        "standard error of the factor": Measurement(float(np.exp(found.ratio_error))),
    }


def _typical(found: Drift) -> str:
    return (
        f"mean off by up to {_largest_shift(found):.2g} standard deviations, {found.typical_shift:.2g} in the median; "
        f"variance by up to a factor {_largest_ratio(found):.2g}, {found.typical_ratio:.2g} in the median"
    )


def _largest_shift(found: Drift) -> float:
    return float(found.shift.max())


def _largest_ratio(found: Drift) -> float:
    return float(np.exp(np.abs(np.log(found.ratio)).max()))


def _left(layer: Layer) -> str:
    """Where it is so: that what a new layer begins with has not been averaged away yet."""
    count, momentum = layer.batches_tracked, layer.momentum
    if not count or not momentum or momentum >= 1 or layer.in_training is None:
        return ""
    left = (1 - momentum) ** count
    mean, var = layer.values("running_mean"), layer.values("running_var")
    if left < LEFT or mean is None or var is None:
        return ""
    without = drift(layer, layer.in_training, mean / (1 - left), np.maximum((var - left) / (1 - left), 0.0))
    if without is None or without.beyond(SHIFT, RATIO) > SHARE * without.channels:
        return ""
    return f": {left:.0%} of them are still those of a new layer, after {count} batches at momentum {momentum:g}"


def _losses(evidence: Evidence) -> tuple[str, bool]:
    """The losses of both modes as words, and whether that of evaluation is clearly worse."""
    if evidence.training is None or evidence.evaluation is None:
        return "", False
    training, evaluation = np.array(evidence.training.losses), np.array(evidence.evaluation.losses)
    if not len(training) or len(training) != len(evaluation):
        return "", False
    words = f"; the loss is {training.mean():.3g} in training mode, and {evaluation.mean():.3g} in evaluation"
    difference = evaluation - training
    if len(difference) < 3 or not np.isfinite(difference).all():
        return words, False
    error = difference.std(ddof=1) / len(difference) ** 0.5
    return words, bool(difference.mean() > max(WORSE * abs(training.mean()), ERRORS * error))


RULE = StaleStatistics()
