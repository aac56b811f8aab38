"""evaluation-moves-statistics: running statistics change although the model is in evaluation mode.

## What it does

Calls `model.eval()`, runs the batches, and compares each norm's running mean, variance and count before and after.

## Why it is bad

Validation data enter the statistics, and what a model answers depends on what it was asked before: results are not
reproducible, the validation score is too good, and two evaluations of one checkpoint differ. Such layers normalise by
the batch as well, so a sample's result depends on the others beside it.

## Evidence

How many calls in evaluation mode moved the statistics (healthy: none), the layer's `training` flag after these calls,
and how much of the statistics is replaced by one pass over these batches, by the layer's momentum. What
it comes from: a `train()` or `eval()` of one's own that leaves the layer in training mode, or a `forward` that switches
it there.

## Example

    >>> import torch, batchnorm
    >>> class Network(torch.nn.Sequential):
    ...     def train(self, mode=True):  # forgets its layers
    ...         self.training = mode
    ...         return self
    >>> model = Network(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8))
    >>> for finding in batchnorm.diagnose(model, batches=[torch.randn(32, 4)], select=["BN012"]).findings:
    ...     print(finding)
    1: error BN012 evaluation-moves-statistics: 1 of 1 calls after model.eval() moved the running statistics: ...

## Use instead

    >>> class Network(torch.nn.Sequential):
    ...     def train(self, mode=True):
    ...         return super().train(mode)
    >>> model = Network(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8))
    >>> batchnorm.diagnose(model, batches=[torch.randn(32, 4)], select=["BN012"]).findings
    ()

## Fix safety

No fix: it is code that switches the mode, and it would do so again. `batchnorm.freeze` holds against any code, where
training should not move the statistics either.

## References

- [ultralytics/ultralytics#18149](https://github.com/ultralytics/ultralytics/issues/18149)
- [DLR-RM/stable-baselines3#553](https://github.com/DLR-RM/stable-baselines3/issues/553)
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..evidence import Evidence, Layer
from ..finding import Finding, Measurement
from ..mends import quoted
from ..rule import Need, Rule


class EvaluationMovesStatistics(Rule):
    """See the file's docstring."""

    code = "BN012"
    name = "evaluation-moves-statistics"
    severity = "error"
    needs = frozenset({Need.BATCHES})

    def check(self, evidence: Evidence) -> Iterator[Finding]:
        """One finding a layer."""
        run, model = evidence.evaluation, evidence.model
        assert run is not None
        assert model is not None
        for layer in evidence.layers:
            if layer.path not in run.moved:
                continue
            calls = layer.in_evaluation.calls if layer.in_evaluation is not None else ()
            moves = sum(call.moved for call in calls)
            measured = {
                "calls that moved the statistics": Measurement(moves, 0),
                "training after this": Measurement(str(layer.after_eval), "False", "equal to"),
            }
            if layer.momentum is not None and moves:
                measured["replaced by these calls"] = Measurement(1 - (1 - float(layer.momentum)) ** moves, 0.0)
            told = f"{moves} of {len(calls)} calls after model.eval() moved the running statistics"
            yield self.found(
                layer,
                f"{told if moves else 'the running statistics moved after model.eval(), outside of a call'}: "
                f"{_cause(model, layer)}.",
                measured,
                f"model.eval(); model.get_submodule({quoted(layer.path)}).eval()",
            )


def _cause(model: torch.nn.Module, layer: Layer) -> str:
    parts = layer.path.split(".") if layer.path else []
    on_the_way = [model.get_submodule(".".join(parts[:depth])) for depth in range(len(parts) + 1)]
    own = [
        f"{type(module).__name__}.{name}"
        for module in on_the_way
        for name in ("train", "eval")
        if getattr(type(module), name) is not getattr(torch.nn.Module, name) or name in vars(module)
    ]
    if own and layer.after_eval:
        return f"{' and '.join(own)} leaves it in training mode"
    return "it is put into training mode, or moved otherwise, while the model runs"


RULE = EvaluationMovesStatistics()
