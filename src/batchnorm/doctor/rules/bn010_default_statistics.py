"""default-statistics: a trained norm's running statistics are still, or again, those that a new one begins with.

## What it does

Looks for norms whose running mean is exactly 0 and whose running variance is exactly 1 in every channel, although the
model has been trained. Where nothing has been trained, there is nothing to find.

## Why it is bad

Evaluation subtracts 0 and divides by 1: it does not normalise. Statistics are buffers, and are lost where only
parameters are copied: a moving average of the weights, a target network, an adapter's checkpoint, `load_state_dict`
with `strict=False` from a file without them. Training never notices.

## Evidence

How many channels hold the initial values (all of them: one trained batch moves every channel by a little), and what
says that the layer was trained:

- its own count of batches is over 0, while the statistics have not moved (error): they were lost, unless its momentum
  is 0, which never moves them;
- its beta differs between channels, as after training (with batches whose moments are off by more than 0.5 standard
  deviations or a factor 2 in a quarter of the channels: error; with batches that happen to have these moments: nothing;
  without batches: warning). Gamma does not count: some initialise it at random;
- other norms of the model have moved statistics, and nothing says that this one was trained (info): it is new, or no
  batch ever reaches it.

Norms that are frozen (`batchnorm.freeze`, `Frozen*` layers, in evaluation mode while the rest trains) are left out:
they train by these statistics too, and some checkpoints have the true ones folded into gamma and beta.

## Example

    >>> import torch, batchnorm
    >>> _ = torch.manual_seed(0)
    >>> student, teacher = (torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8)) for _ in range(2))
    >>> optimizer = torch.optim.SGD(student.parameters(), 0.1)
    >>> batches = [torch.randn(64, 4) + 3 for _ in range(4)]
    >>> for batch in batches:
    ...     student(batch).cos().sum().backward()
    ...     optimizer.step()
    >>> with torch.no_grad():  # parameters, and not the buffers
    ...     for target, source in zip(teacher.parameters(), student.parameters()):
    ...         _ = target.copy_(source)
    >>> diagnosis = batchnorm.diagnose(teacher, batches=batches, select=["BN010"])
    >>> for finding in diagnosis.findings:
    ...     print(finding)
    1: error BN010 default-statistics: all 8 channels have the running mean 0 and variance 1 of a new layer, but ...

## Use instead

Copy the buffers too (`teacher.load_state_dict(student.state_dict())`), or take them anew:

    >>> _ = diagnosis.fix()
    >>> batchnorm.diagnose(teacher, batches=batches, select=["BN010"]).findings
    ()

## Fix safety

With batches that reach the layer, the statistics of the model's norms are taken anew over all of them
(`batchnorm.recalibrate`). The values that are replaced are those of no data. A layer whose momentum is 0 is not mended:
its momentum has to become another first.

## References

- [DLR-RM/stable-baselines3#1004](https://github.com/DLR-RM/stable-baselines3/issues/1004)
- [CuriousAI/mean-teacher#9](https://github.com/CuriousAI/mean-teacher/issues/9)
- [huggingface/peft#1732](https://github.com/huggingface/peft/issues/1732)
- `torch.optim.swa_utils.update_bn`, which exists for this
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ...population.layers import tracked_norms
from ..drift import drift
from ..evidence import Evidence, Layer
from ..finding import Finding, Measurement, Severity
from ..mends import quoted, recalibrating, recalibration
from ..rule import Need, Rule

#: Moments that differ by less are as good as those of a trained layer; and of so many channels.
SHIFT, RATIO, SHARE = 0.5, 2.0, 0.25


def is_default(layer: Layer) -> bool:
    """Whether a layer's running statistics are those that a new one has, in every channel."""
    mean, var = layer.values("running_mean"), layer.values("running_var")
    return mean is not None and var is not None and len(mean) > 0 and bool((mean == 0).all() and (var == 1).all())


class DefaultStatistics(Rule):
    """See the file's docstring."""

    code = "BN010"
    name = "default-statistics"
    severity = "error"
    uses = frozenset({Need.BATCHES})

    def check(self, evidence: Evidence) -> Iterator[Finding]:
        """One finding a layer."""
        model = evidence.model
        moving = None if model is None else {path for path, _ in tracked_norms(model)}
        moved = sum(layer.has_statistics and layer.channels > 0 and not is_default(layer) for layer in evidence.layers)
        for layer in evidence.layers:
            if not is_default(layer) or (moving is not None and layer.path not in moving and layer.momentum != 0):
                continue
            verdict = _verdict(layer, moved)
            if verdict is None:
                continue
            severity, why, measured = verdict
            run = layer.in_training
            found = None if run is None else drift(layer, run)
            if found is not None:
                beyond = found.beyond(SHIFT, RATIO)
                if beyond < SHARE * found.channels:
                    continue
                measured["channels whose input is otherwise"] = Measurement(beyond, SHARE * found.channels)
                severity = "error" if severity == "warning" else severity
            fixable = found is not None and moving is not None and layer.path in moving
            yield self.found(
                layer,
                f"all {layer.channels} channels have the running mean 0 and variance 1 of a new layer, {why}.",
                {"channels with initial statistics": Measurement(layer.channels, 0), **measured},
                _mend(evidence, layer),
                severity=severity,
                fix=recalibration(evidence) if fixable else None,
            )


def _verdict(layer: Layer, moved: int) -> tuple[Severity, str, dict[str, Measurement]] | None:
    """How bad it is, what says that the layer was trained, and in numbers; None where nothing does."""
    count = layer.batches_tracked
    if count:
        measured = {"batches tracked": Measurement(count, 0)}
        why = "its momentum is 0, which never moves them" if layer.momentum == 0 else "the statistics were lost"
        return "error", f"but it has counted {count} batches: {why}", measured
    bias = layer.values("bias")
    spread = 0.0 if bias is None else float(np.ptp(bias))
    if spread > 0:
        return "warning", f"but beta is trained (it spans {spread:.3g})", {"span of beta": Measurement(spread, 0.0)}
    if moved:
        measured = {"norms whose statistics have moved": Measurement(moved, 0)}
        return "info", f"while {moved} other norms have statistics of data: it is new, or was never reached", measured
    return None


def _mend(evidence: Evidence, layer: Layer) -> str:
    anew = recalibrating(evidence)
    stays = layer.module is not None and layer.momentum == 0  # recalibrate would leave it as it is
    return f"model.get_submodule({quoted(layer.path)}).momentum = 0.1; {anew}" if stays else anew


RULE = DefaultStatistics()
