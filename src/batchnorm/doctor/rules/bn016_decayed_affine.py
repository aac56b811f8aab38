"""decayed-affine: weight decay pulls gamma and beta to zero.

## What it does

Looks for gamma and beta of batch norms in the optimizer's groups that have a `weight_decay`.

## Why it is bad

Decay on a weight before a batch norm does not change the function: the norm divides its scale out again. Gamma and beta
are what is left of the function, and decay pulls them towards a constant output, in channels with little gradient most.
Every optimizer of torch does that if it is given `model.parameters()` and a `weight_decay`; AdamW's default is 0.01.

## Evidence

How many gammas and betas that are trained are in such groups, and the largest weight decay. For SGD and AdamW, which
shrink a parameter by learning rate · weight decay in each step, also in how many steps a gamma without a gradient is
halved: it is a warning under 1000 steps, a few epochs, else an info, for networks do train so: with the recipe of the
first ResNets (0.1, momentum 0.9, 0.0001) it takes ln 2 · (1 − 0.9) / (0.1 · 0.0001) = 6931 steps. Other layers'
parameters are not looked at (`batchnorm.parameter_groups` leaves those of layer and group norms out as well).

## Example

    >>> import torch, batchnorm
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8))
    >>> optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    >>> diagnosis = batchnorm.diagnose(model, optimizer=optimizer, select=["BN016"])
    >>> for finding in diagnosis.findings:
    ...     print(finding)
    (the model itself): warning BN016 decayed-affine: 2 gammas and betas have a weight decay of 0.01: without a gradient
    a gamma is halved in 693 steps.

## Use instead

    >>> optimizer = torch.optim.AdamW(batchnorm.parameter_groups(model, weight_decay=0.01), lr=0.1)
    >>> batchnorm.diagnose(model, optimizer=optimizer, select=["BN016"]).findings
    ()

An optimizer that is there already keeps its other options and its state:

    >>> optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, betas=(0.5, 0.9))
    >>> batchnorm.optim.without_decay(optimizer, model)
    >>> [(len(group["params"]), group["weight_decay"], group["betas"]) for group in optimizer.param_groups]
    [(2, 0.01, (0.5, 0.9)), (2, 0.0, (0.5, 0.9))]

## Fix safety

Safe: they move to a group of their own, with the same options and no weight decay; their state (momentum, averages)
stays theirs. So do those of the model's layer, group and instance norms. A group that holds nothing else only loses its
decay, and what is no parameter of the model stays where it is (`batchnorm.optim.without_decay`). Not mended where a
learning rate scheduler has been there already, which holds one rate for each group that it found, nor for `LBFGS` and
optimizers that wrap another. A checkpoint of the optimizer from before has one group less, and does not load.

## References

- [pytorch/pytorch#1402](https://github.com/pytorch/pytorch/issues/1402)
- The convention of timm, whose optimizers leave norms and biases without decay
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from ...optim import undecayed, without_decay
from ..evidence import Evidence
from ..finding import Finding, Fix, Measurement, Subject
from ..rule import Need, Rule

#: A few epochs; ordinary recipes take several times as long.
STEPS = 1000


class DecayedAffine(Rule):
    """See the file's docstring."""

    code = "BN016"
    name = "decayed-affine"
    severity = "warning"
    needs = frozenset({Need.MODEL, Need.OPTIMIZER})

    def check(self, evidence: Evidence) -> Iterator[Finding]:
        """One finding for the model."""
        optimizer = evidence.optimizer
        assert optimizer is not None
        affine = _affine(evidence)
        groups = [group for group in optimizer.param_groups if _decay(group) > 0 and _held(group, affine)]
        if not groups:
            return
        count = sum(len(_held(group, affine)) for group in groups)
        decay = max(_decay(group) for group in groups)
        assert evidence.model is not None
        split = _splits(optimizer, undecayed(evidence.model))
        measured = {
            "weight decay": Measurement(decay, 0.0),
            "gammas and betas that decay": Measurement(count, 0),
        }
        message = f"{count} gammas and betas have a weight decay of {decay:g}"
        steps = min((_halved(optimizer, group) for group in groups), default=math.inf)
        if math.isfinite(steps):
            measured["steps until a gamma is halved"] = Measurement(round(steps), STEPS, "at least")
            message += f": without a gradient a gamma is halved in {steps:.0f} steps"
        yield self.found(
            "",
            f"{message}.",
            measured,
            "batchnorm.optim.without_decay(optimizer, model)"
            + ("  # and make the learning rate scheduler anew" if split and _scheduled(optimizer) else ""),
            severity="warning" if steps < STEPS else "info",
            fix=_fix(optimizer, split),
        )


def _affine(evidence: Evidence) -> set[int]:
    """Gamma and beta of all batch norms that are trained."""
    return {
        id(parameter)
        for layer in evidence.layers
        if layer.module is not None
        for name in ("weight", "bias")
        if (parameter := layer.module._parameters.get(name)) is not None and parameter.requires_grad
    }


def _decay(group: dict[str, Any]) -> float:
    return float(group.get("weight_decay") or 0.0)


def _held(group: dict[str, Any], chosen: set[int]) -> list[Any]:
    return [parameter for parameter in group["params"] if id(parameter) in chosen]


def _halved(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> float:
    """Steps after which decay alone has halved a parameter; infinite where a step is not the rate times the decay."""
    direct = isinstance(optimizer, torch.optim.SGD | torch.optim.AdamW) or group.get("decoupled_weight_decay")
    shrink = float(group.get("lr", 0.0)) * _decay(group)
    if not direct or shrink <= 0:
        return math.inf
    if isinstance(optimizer, torch.optim.SGD):
        # Momentum adds the pull up over the steps.
        shrink *= (1 - float(group.get("dampening", 0.0))) / max(1 - float(group.get("momentum", 0.0)), 1e-3)
    return math.log(2) / shrink if shrink < 1 else 1.0


def _fix(optimizer: torch.optim.Optimizer, split: bool) -> Fix | None:
    theirs = type(optimizer).__module__.startswith("torch.optim.") and not isinstance(optimizer, torch.optim.LBFGS)
    if not theirs or (split and _scheduled(optimizer)):
        return None

    def apply(subject: Subject) -> None:
        assert subject.optimizer is not None
        assert subject.model is not None
        without_decay(subject.optimizer, subject.model)

    return Fix("gives gamma and beta groups without weight decay (batchnorm.optim.without_decay)", apply)


def _splits(optimizer: torch.optim.Optimizer, without: set[int]) -> bool:
    """Whether a group with weight decay holds both what should have none, and others."""
    decayed = (group for group in optimizer.param_groups if _decay(group) > 0)
    return any(0 < len(_held(group, without)) < len(group["params"]) for group in decayed)


def _scheduled(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a learning rate scheduler has been there."""
    return any("initial_lr" in group for group in optimizer.param_groups)


RULE = DecayedAffine()
