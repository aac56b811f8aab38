"""flag-disagrees: a flag says one thing of a layer, and its tensors another: it was flipped after construction.

## What it does

Compares `track_running_stats`, `momentum` and `affine` of every norm with the tensors that it has.

## Why it is bad

The constructor reads `track_running_stats` once, to make the buffers or not. Afterwards `forward` looks at both, and a
half of the change is a layer that nobody meant:

| flag | tensors | training | evaluation |
|---|---|---|---|
| False | mean and variance | by the batch; they no longer move | **by them, as they were left** |
| True | none | by the batch | by the batch: nothing is tracked |
| True | mean and variance, no count, `momentum=None` | by the batch; **they never move** | by them |
| True | one of the two | raises | raises |
| `affine=False` | gamma | times gamma | times gamma; `convert_sync_batchnorm` drops it |

`torch.nn.SyncBatchNorm` with the flag and without a count raises in training.

## Evidence

The flag and what is there. It is an error where evaluation goes by statistics that were never tracked, where a count
that is missing keeps them from moving, or where the layer raises; an info where a layer in evaluation mode only has the
wrong flag.

## Example

    >>> import torch, batchnorm
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8))
    >>> model[1].track_running_stats = False
    >>> diagnosis = batchnorm.diagnose(model, select=["BN013"])
    >>> for finding in diagnosis.findings:
    ...     print(finding)
    1: error BN013 flag-disagrees: track_running_stats is False, and evaluation normalises by running statistics that
    are still the initial 0 and 1.

## Use instead

Say it in the constructor, or change both.

    >>> _ = diagnosis.fix()
    >>> model[1].running_mean is None
    True

## Fix safety

Mended where nothing is lost. Initial statistics beside the flag False are removed, as the constructor would have it
(evaluation then goes by the batch, and the checkpoint lacks the three buffers); the flag becomes False where there are
no statistics, which computes the same; `affine` becomes True where gamma is; a missing count is put back where nothing
reads it, or where the statistics are the initial ones. Statistics that were tracked are never thrown away: whether you
want them is for you to say.

## References

- [pytorch/pytorch#20967](https://github.com/pytorch/pytorch/issues/20967),
  [#37823](https://github.com/pytorch/pytorch/issues/37823),
  [#44415](https://github.com/pytorch/pytorch/issues/44415)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ...nn.frozen import Frozen
from ..evidence import Evidence, Layer
from ..finding import Finding, Fix, Measurement, Severity, Subject
from ..mends import quoted
from ..rule import Need, Rule

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class _Problem:
    """What a layer's flags and tensors make of it."""

    severity: Severity
    message: str
    flag: str
    value: object
    fits: object
    there: str
    mend: str
    description: str = ""
    change: Callable[[Any], None] | None = None


class FlagDisagrees(Rule):
    """See the file's docstring."""

    code = "BN013"
    name = "flag-disagrees"
    severity = "warning"
    needs = frozenset({Need.MODEL})

    def check(self, evidence: Evidence) -> Iterator[Finding]:
        """One finding a layer: the worst of what is there."""
        for layer in evidence.layers:
            problem = _problem(layer)
            if problem is None:
                continue
            measured = {
                problem.flag: Measurement(str(problem.value), str(problem.fits), "equal to"),
                "tensors": Measurement(problem.there),
            }
            change = problem.change
            yield self.found(
                layer,
                problem.message,
                measured,
                problem.mend,
                severity=problem.severity,
                fix=None if change is None else Fix(problem.description, _applied(layer, change)),
            )


def _applied(layer: Layer, change: Callable[[Any], None]) -> Callable[[Subject], None]:
    def apply(_: Subject) -> None:
        change(layer.module)

    return apply


def _problem(layer: Layer) -> _Problem | None:
    module = layer.module
    if module is None or isinstance(module, Frozen):  # it goes by its statistics, whatever its flags say
        return None
    mean, var, seen = (getattr(module, name, None) is not None for name in _STATISTICS)
    there = ", ".join(name for name, has in zip(_STATISTICS, (mean, var, seen), strict=True) if has) or "none of three"
    name = f"model.get_submodule({quoted(layer.path)})"
    flag = bool(module.track_running_stats)
    found = None
    if mean != var:
        found = _half(layer, there, name)
    elif mean and not flag:
        found = _untracked(layer, there, name)
    elif flag and not mean:
        found = _nothing(module, there, name)
    elif flag and not seen:
        found = _uncounted(layer, there, name)
    if found is None and not module.affine and getattr(module, "weight", None) is not None:
        found = _affine(name)
    return found


def _half(layer: Layer, there: str, name: str) -> _Problem:
    lacks, has, like = (
        ("running_var", "running_mean", "ones_like")
        if "running_mean" in there
        else ("running_mean", "running_var", "zeros_like")
    )
    return _Problem(
        "error",
        f"{lacks} is missing, and the other half of the running statistics is there: the layer raises.",
        "running statistics",
        there,
        "both",
        there,
        f'{name}.register_buffer("{lacks}", torch.{like}({name}.{has}))  # then load the checkpoint again',
    )


def _untracked(layer: Layer, there: str, name: str) -> _Problem:
    message = "track_running_stats is False, and evaluation normalises by running statistics that "
    if _initial(layer):
        return _Problem(
            "error",
            f"{message}are still the initial 0 and 1.",
            "track_running_stats",
            False,
            True,
            there,
            f"{name}.running_mean = {name}.running_var = {name}.num_batches_tracked = None",
            "removes running statistics that are still the initial ones",
            _without_statistics,
        )
    return _Problem(
        "warning" if layer.training else "info",
        f"{message}training no longer moves.",
        "track_running_stats",
        False,
        True,
        there,
        f"{name}.track_running_stats = True  # or batchnorm.freeze(model), to keep them as they are",
    )


def _nothing(module: Any, there: str, name: str) -> _Problem:
    raises = isinstance(module, torch.nn.SyncBatchNorm) and there == "none of three"
    return _Problem(
        "error" if raises else "warning",
        f"track_running_stats is True, and there are no running statistics: "
        f"{'training raises' if raises else 'evaluation normalises by the batch'}.",
        "track_running_stats",
        True,
        False,
        there,
        f"{name}.track_running_stats = False  # or a new layer, to have them tracked",
        "sets track_running_stats to False, which is what the layer does",
        _flagged_untracked,
    )


def _uncounted(layer: Layer, there: str, name: str) -> _Problem | None:
    module = layer.module
    averages = layer.momentum is None
    raises = isinstance(module, torch.nn.SyncBatchNorm)
    if not averages and not raises:
        return None  # nothing reads the count
    harmless = not averages or _initial(layer)
    return _Problem(
        "error",
        "num_batches_tracked is missing: " + ("training raises." if raises else "with momentum=None nothing moves."),
        "num_batches_tracked",
        None,
        "a count",
        there,
        f'{name}.register_buffer("num_batches_tracked", torch.tensor(0))',
        "puts num_batches_tracked back, at 0",
        _counted if harmless else None,
    )


def _affine(name: str) -> _Problem:
    return _Problem(
        "warning",
        "affine is False, and the layer multiplies by its gamma: convert_sync_batchnorm would drop it.",
        "affine",
        False,
        True,
        "weight",
        f"{name}.affine = True",
        "sets affine to True, which is what the layer does",
        _flagged_affine,
    )


def _initial(layer: Layer) -> bool:
    mean, var = layer.values("running_mean"), layer.values("running_var")
    return (
        mean is not None and var is not None and not layer.batches_tracked and not mean.any() and bool((var == 1).all())
    )


def _without_statistics(module: Any) -> None:
    for name in _STATISTICS:
        setattr(module, name, None)


def _flagged_untracked(module: Any) -> None:
    module.track_running_stats = False


def _flagged_affine(module: Any) -> None:
    module.affine = True


def _counted(module: Any) -> None:
    count = torch.tensor(0, dtype=torch.long, device=module.running_mean.device)
    module.register_buffer("num_batches_tracked", count)


RULE = FlagDisagrees()
