"""batch-leak: in evaluation mode the output for one sample depends on the other samples of its batch.

## What it does

Runs the first batch in evaluation mode, and then a batch of the same size that holds its first sample only. Where the
outputs for that sample differ, it names the norms that normalise by the batch.

## Why it is bad

A prediction should be a function of its input. Here it changes with the batch size, with the order of the data and with
what else happens to be asked for; a single request is normalised by itself, which gives zeros or an error. Scores that
were measured with full batches are not those of the deployed model, and test data leak into each other.

## Evidence

The largest difference between the two outputs, over their largest absolute value: up to 10⁻³ counts as roundings (it is
0 where nothing depends on the others, for both runs compute the sample at the same place). A norm is named if it
normalised by its batch in evaluation mode and its own output for the sample differed. Other operations can leak too, by
design or not: of these the rule says nothing.

## Example

    >>> import torch, batchnorm
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8, track_running_stats=False))
    >>> for finding in batchnorm.diagnose(model, batches=[torch.randn(32, 4)], select=["BN024"]).findings:
    ...     print(finding)
    1: error BN024 batch-leak: in evaluation mode it normalises by the batch (it tracks no statistics), and the output
    for a sample differs by ... of its largest value with the others in its batch.

## Use instead

    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8))
    >>> _ = model(torch.randn(32, 4))
    >>> batchnorm.diagnose(model, batches=[torch.randn(32, 4)], select=["BN024"]).findings
    ()

Of a layer that tracks none, the finding's line makes one that does, takes its statistics over `batches`, and keeps its
gamma, beta and eps.

## Fix safety

No fix: with running statistics the model would give other outputs, whose worth only its score can tell.

## References

- [pytorch/pytorch#156051](https://github.com/pytorch/pytorch/issues/156051)
- [Lightning-Universe/lightning-bolts#568](https://github.com/Lightning-Universe/lightning-bolts/issues/568), whose
  check is by gradients between samples
"""

from __future__ import annotations

from collections.abc import Iterator

from ..evidence import Evidence, Layer
from ..finding import Finding, Measurement
from ..mends import quoted, recalibrating
from ..rule import Need, Rule

#: Of the output's largest value. A batch of copies has no variance: what leaks by a norm differs by far more.
MOST = 1e-3


class BatchLeak(Rule):
    """See the file's docstring."""

    code = "BN024"
    name = "batch-leak"
    severity = "error"
    needs = frozenset({Need.MODEL, Need.BATCHES})

    def check(self, evidence: Evidence) -> Iterator[Finding]:
        """One finding a layer that normalises by the batch."""
        seen = evidence.independence
        if seen is None or seen.difference <= MOST:
            return
        for layer in evidence.layers:
            run = layer.in_evaluation
            calls = [] if run is None else [call for call in run.calls if call.by_batch]
            if not calls or layer.path not in seen.layers:
                continue
            why, mend = _cause(layer, evidence)
            yield self.found(
                layer,
                f"in evaluation mode it normalises by the batch ({why}), and the output for a sample differs by "
                f"{seen.difference:.2g} of its largest value with the others in its batch.",
                {
                    "difference": Measurement(seen.difference, MOST, unit="of the largest value"),
                    "calls by batch in evaluation": Measurement(len(calls), 0),
                    "samples": Measurement(seen.samples),
                },
                mend,
            )


def _cause(layer: Layer, evidence: Evidence) -> tuple[str, str]:
    if layer.after_eval:
        return "model.eval() leaves it in training mode", f"model.get_submodule({quoted(layer.path)}).eval()"
    module = layer.module
    if module is not None and module.running_mean is None:
        return "it tracks no statistics", _tracking(layer, evidence)
    return (
        "forward switches it to training mode",
        f"batchnorm.freeze(model, where=lambda path, _: path == {quoted(layer.path)})",
    )


def _tracking(layer: Layer, evidence: Evidence) -> str:
    """Gives the layer itself running statistics, of its own dtype and on its own device, and takes them."""
    like = ""
    if "weight" in layer.tensors:
        like = "norm.to(norm.weight); "
    elif evidence.model is not None and next(evidence.model.parameters(), None) is not None:
        like = "norm.to(next(model.parameters())); "
    names = "norm.track_running_stats, norm.running_mean, norm.running_var, norm.num_batches_tracked"
    return (
        f"norm = model.get_submodule({quoted(layer.path)}); "
        f"{names} = True, torch.zeros({layer.channels}), torch.ones({layer.channels}), torch.tensor(0); "
        f"{like}{recalibrating(evidence)}"
    )


RULE = BatchLeak()
