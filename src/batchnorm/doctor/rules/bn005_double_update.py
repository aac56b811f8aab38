"""double-update: one step of training moves a norm's running statistics more than once by the same values.

## What it does

Runs a training step, forward and backward. The statistics must not move in the backward pass, and not a second time for
the same input in the forward pass.

## Why it is bad

Activation checkpointing computes a part of the forward pass again while the gradients are computed, and torch's norms
do not know that they have seen this batch: with momentum 0.1 the batch weighs 0.19, and `num_batches_tracked`, which
`momentum=None` goes by, is twice what it should be. The same happens where a model calls a norm twice with one input.
The running statistics then are those of fewer, later batches, and evaluation is noisier than the momentum says.

## Evidence

How often the layer was called with the first batch, how often more in the backward pass (recomputation) or with an
input that it had seen in the same step, and what momentum that amounts to. Different inputs in one step are another
matter (BN015).

## Example

    >>> import torch, batchnorm
    >>> from torch.utils.checkpoint import checkpoint
    >>> class Network(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.block = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU())
    ...     def forward(self, input):
    ...         return checkpoint(self.block, input, use_reentrant=False)
    >>> model = Network()
    >>> diagnosis = batchnorm.diagnose(model, batches=[torch.randn(64, 4)], select=["BN005"])
    >>> for finding in diagnosis.findings:
    ...     print(finding)
    block.1: warning BN005 double-update: the backward pass moves the running statistics once more (recomputation): ...

## Use instead

This library's layers know a recomputation, and leave their statistics alone in it.

    >>> model = batchnorm.convert(model, "batch")
    >>> batchnorm.diagnose(model, batches=[torch.randn(64, 4)], select=["BN005"]).findings
    ()

For calls that are meant, `with batchnorm.accumulate_statistics(model):` around the step moves the statistics once.

## Fix safety

Where recomputation does it and the layer is torch's, it becomes this library's drop-in (`SyncBatchNorm` this library's
of that name), in place: outputs, gradients, parameters, buffers and `state_dict` keys stay. A subclass with a method of
its own stays as it is, and so does a layer that is called twice in the forward pass.

## References

- [pytorch/pytorch#96136](https://github.com/pytorch/pytorch/issues/96136),
  [#62471](https://github.com/pytorch/pytorch/issues/62471)
- [facebookresearch/fairscale#1035](https://github.com/facebookresearch/fairscale/issues/1035)
"""

from __future__ import annotations

from collections.abc import Iterator

from ...surgery.kinds import find, refusal
from ..evidence import Evidence, Layer
from ..finding import Finding, Fix, Measurement
from ..mends import conversion
from ..rule import Need, Rule

_DROP_IN = {"torch": "batch", "torch-sync": "sync"}


class DoubleUpdate(Rule):
    """See the file's docstring."""

    code = "BN005"
    name = "double-update"
    severity = "warning"
    needs = frozenset({Need.BACKWARD})

    def check(self, evidence: Evidence) -> Iterator[Finding]:
        """One finding a layer."""
        assert evidence.training is not None
        for layer in evidence.layers:
            run = layer.in_training
            if run is None:
                continue
            calls = len(run.first_step)
            backward = layer.path in evidence.training.moved_in_backward
            recomputed = sum(call.recomputed and call.moved and call.batch == 0 for call in run.calls)
            # A channel that is 0 throughout says nothing of where it comes from.
            again = sum(call.moved and call.same_input and bool(call.var.any()) for call in run.first_step)
            if not (backward or again):
                continue
            more = again + max(recomputed, int(backward))
            momentum = layer.momentum
            by = f": a batch weighs {1 - (1 - momentum) ** (calls + more - again):.2g}, not " if momentum else ""
            weight = f"{by}{1 - (1 - momentum) ** (calls - again):.2g}" if momentum else ""
            where = "the backward pass moves the running statistics once more (recomputation)"
            if not backward:
                where = f"{again + 1} calls in one step move the running statistics by the same input"
            to = _drop_in(layer) if backward and not again else None
            yield self.found(
                layer,
                f"{where}{weight}.",
                {
                    "updates in one step": Measurement(calls + max(recomputed, int(backward)), calls - again),
                    "updates by what was seen before": Measurement(more, 0),
                },
                f'model = batchnorm.convert(model, "{to}")'
                if to is not None
                else "with batchnorm.accumulate_statistics(model): step(batch)",
                fix=None
                if to is None
                else Fix(f"makes the layer this library's ({to}), which knows a recomputation", conversion(layer, to)),
            )


def _drop_in(layer: Layer) -> str | None:
    """The kind that a layer of torch's can become; None where it cannot."""
    if layer.module is None:
        return None
    found = find(layer.module)
    if found is None or refusal(layer.module, found) is not None:
        return None
    return _DROP_IN.get(found.kind.name)


RULE = DoubleUpdate()
