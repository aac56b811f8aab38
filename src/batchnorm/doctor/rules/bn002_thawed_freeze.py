"""thawed-freeze: a norm that is meant to be frozen is not: its statistics move, or will with the next `train()`.

## What it does

Looks for norms that somebody has begun to freeze:

- gamma and beta are fixed (`requires_grad=False`), and the running statistics go on moving in training;
- the layer has been put into evaluation mode while the rest of the model trains, and `model.train()` undoes that;
- it is run under `torch.no_grad`, or the optimizer given has none of its parameters, and the running statistics move.

## Why it is bad

A frozen layer is to be the function that it was. With fixed gamma and beta, a moving mean and variance change it all
the same, and training normalises by the batch on top of that: fine-tuning on small batches then ruins a backbone that
was never meant to be touched. `requires_grad=False` says nothing about buffers. `layer.eval()` holds until somebody
calls `model.train()`, which a training loop does each epoch, and a trainer after each validation.

## Evidence

Which of gamma and beta are fixed, the layer's `training` flag as given, after `model.train()` where batches are given,
whether its statistics moved, and whether its output could be differentiated. Without batches, whether a module on the
way to it has a `train` of its own, which may keep the layer as it is, or the layer a `forward` of its own, which may
use the running statistics in training too: then nothing is said. What an optimizer does not have, another one may
train: that is an info.

None of these is a finding: layers frozen by `batchnorm.freeze`, by their class (a `forward` of its own too, where
batches show that it leaves the statistics as they are) or by momentum 0; a model that is in
evaluation mode as a whole; gamma = 1 and beta = 0, fixed, beside weights that train (as good as `affine=False`); a
fixed module beside a sibling that is built alike and trains (the target of a moving average, whose statistics are meant
to follow). A layer without gamma and beta counts as fixed where the nearest module around it that has parameters is.

## Example

    >>> import torch, batchnorm
    >>> backbone = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU())
    >>> _ = backbone(torch.randn(8, 3, 8, 8))  # it is trained, so to speak
    >>> model = torch.nn.Sequential(backbone.requires_grad_(False), torch.nn.Flatten(), torch.nn.LazyLinear(10))
    >>> diagnosis = batchnorm.diagnose(model, select=["BN002"])
    >>> for finding in diagnosis.findings:
    ...     print(finding)
    0.1: warning BN002 thawed-freeze: gamma and beta are fixed, and the running statistics still move in training.

## Use instead

    >>> _ = diagnosis.fix()
    >>> model.train()[0][1]
    BatchNorm2d(8, ..., frozen)

## Fix safety

`batchnorm.freeze` on the layer: from then on its statistics stay as they are and are used in training too, as they are
in evaluation. `batchnorm.unfreeze` undoes it exactly. There is no fix where the statistics are still those of a new
layer: nothing is there to be frozen; nor where the layer is not fixed but gets no gradient, or is not in the optimizer:
it may be trained elsewhere.

## References

- [pytorch/pytorch#86590](https://github.com/pytorch/pytorch/issues/86590)
- [Lightning-AI/pytorch-lightning#15062](https://github.com/Lightning-AI/pytorch-lightning/issues/15062)
- [ultralytics/ultralytics#8753](https://github.com/ultralytics/ultralytics/issues/8753)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from ...population.freeze import freeze
from ...population.layers import tracked_norms
from ..evidence import Evidence, Layer
from ..finding import Finding, Fix, Measurement, Severity, Subject
from ..mends import quoted
from ..own_forward import has_own_forward
from ..rule import Need, Rule
from .bn010_default_statistics import is_default


class ThawedFreeze(Rule):
    """See the file's docstring."""

    code = "BN002"
    name = "thawed-freeze"
    severity = "warning"
    needs = frozenset({Need.MODEL})
    uses = frozenset({Need.BATCHES, Need.BACKWARD, Need.OPTIMIZER})

    def check(self, evidence: Evidence) -> Iterator[Finding]:
        """One finding a layer."""
        model = evidence.model
        assert model is not None
        moving = {path for path, _ in tracked_norms(model)}
        held = _held(evidence)
        for layer in evidence.layers:
            if layer.frozen is not None or not layer.has_statistics or not layer.channels:
                continue
            severity: Severity = "warning"
            meant = True
            if layer.training and _fixed(model, layer, None) and _moves(evidence, layer):
                fixed = [name for name in ("gamma", "beta") if _there(layer, name)]
                message = (
                    f"{' and '.join(fixed) or 'all parameters around it'} are fixed, "
                    "and the running statistics still move in training."
                )
                measured = {
                    "fixed parameters of the layer": Measurement(len(fixed)),
                    "training": Measurement(str(layer.training), "False", "equal to"),
                }
            elif not layer.training and layer.path not in moving and _goes_back(evidence, layer):
                message = (
                    "it is in evaluation mode while the rest of the model trains, and model.train() puts it back into "
                    "training mode."
                )
                measured = {
                    "training": Measurement(str(layer.training)),
                    "training after model.train()": Measurement("True", "False", "equal to"),
                }
            elif layer.training and _runs_without_gradient(evidence, layer) and not _follows(model, layer.path):
                meant = False
                message = "it is run under torch.no_grad, and the running statistics still move in training."
                measured = {
                    "gradient of its output": Measurement("none"),
                    "running statistics that move": Measurement("yes", "no", "equal to"),
                }
            elif layer.training and held and _fixed(model, layer, held) and _moves(evidence, layer):
                meant, severity = False, "info"
                message = (
                    "the optimizer has none of its parameters, and the running statistics still move in training: if "
                    "no other optimizer trains it, it is frozen in part."
                )
                measured = {
                    "its parameters in the optimizer": Measurement(0),
                    "running statistics that move": Measurement("yes", "no", "equal to"),
                }
            else:
                continue
            fixable = meant and not is_default(layer)
            yield self.found(
                layer,
                message,
                measured,
                f"batchnorm.freeze(model, where=lambda path, layer: path == {quoted(layer.path)})",
                severity=severity,
                fix=Fix("freezes the layer (batchnorm.freeze)", _freezing(layer)) if fixable else None,
            )


def _there(layer: Layer, name: str) -> bool:
    return {"gamma": "weight", "beta": "bias"}[name] in layer.requires_grad


def _held(evidence: Evidence) -> set[int]:
    """The parameters that the optimizer has, by their identities; none where there is no optimizer."""
    groups = [] if evidence.optimizer is None else evidence.optimizer.param_groups
    return {id(parameter) for group in groups for parameter in group["params"]}


def _fixed(model: torch.nn.Module, layer: Layer, held: set[int] | None) -> bool:
    """Whether gamma and beta, or what is around a layer without them, are fixed as one fixes what is to be frozen.

    Fixed is what needs no gradient, or, with ``held``, what is none of these parameters.
    """

    def train(module: torch.nn.Module) -> bool:
        return any(each.requires_grad and (held is None or id(each) in held) for each in module.parameters())

    assert layer.module is not None
    if train(layer.module):
        return False
    around = _around(model, layer.path)
    if train(around):
        # Beside weights that train: initial values mean no more than affine=False.
        weight, bias = layer.values("weight"), layer.values("bias")
        initial = (weight is None or bool((weight == 1).all())) and (bias is None or bool((bias == 0).all()))
        return bool(layer.requires_grad) and not initial
    return not _follows(model, layer.path)


def _around(model: torch.nn.Module, path: str) -> torch.nn.Module:
    """The nearest module around a layer that has parameters other than the layer's; else the model."""
    own = {id(parameter) for parameter in model.get_submodule(path).parameters()}
    while path:
        path = path.rpartition(".")[0]
        module = model.get_submodule(path)
        if any(id(parameter) not in own for parameter in module.parameters()):
            return module
    return model


def _follows(model: torch.nn.Module, path: str) -> bool:
    """Whether a layer is in a module that has a sibling of the same build, in which something trains."""
    parts = path.split(".")
    for depth in range(len(parts)):
        parent = model.get_submodule(".".join(parts[:depth]))
        # Of a sequence or a list the members are stages, one after the other.
        if isinstance(parent, torch.nn.Sequential | torch.nn.ModuleList):
            continue
        here = parent.get_submodule(parts[depth])
        for sibling in parent.children():
            alike = sibling is not here and type(sibling) is type(here) and _shapes(sibling) == _shapes(here)
            if alike and any(parameter.requires_grad for parameter in sibling.parameters()):
                return True
    return False


def _shapes(module: torch.nn.Module) -> dict[str, torch.Size | None]:
    return {
        name: None if torch.nn.parameter.is_lazy(parameter) else parameter.shape
        for name, parameter in module.named_parameters()
    }


def _moves(evidence: Evidence, layer: Layer) -> bool:
    """Whether training moves its statistics: as seen, where it was run."""
    if evidence.training is not None and layer.in_training is not None:
        return layer.path in evidence.training.moved
    return _will_train(evidence, layer)


def _goes_back(evidence: Evidence, layer: Layer) -> bool:
    """Whether ``model.train()`` makes its statistics move: as seen, where it was run."""
    return _will_train(evidence, layer) and (layer.in_training is None or _moves(evidence, layer))


def _will_train(evidence: Evidence, layer: Layer) -> bool:
    assert evidence.model is not None
    assert layer.module is not None
    if layer.in_training is None and has_own_forward(layer.module):
        return False  # it may be frozen by that
    return not _own_train(evidence.model, layer.path) if layer.after_train is None else layer.after_train


def _runs_without_gradient(evidence: Evidence, layer: Layer) -> bool:
    """Whether a layer with parameters that train is called under ``torch.no_grad`` in the step that is differentiated.

    Activation checkpointing does so as well, and calls it again in the backward pass.
    """
    run = evidence.training
    if run is None or run.without_backward or layer.in_training is None or layer.gradient is not None:
        return False
    calls = [call for call in layer.in_training.calls if call.batch == 0]
    alone = bool(calls) and not any(call.differentiable or call.recomputed for call in calls)
    return alone and any(layer.requires_grad.values()) and layer.path in run.moved


def _own_train(model: torch.nn.Module, path: str) -> bool:
    """Whether a module from the model down to the layer has a ``train`` other than torch's."""
    parts = path.split(".") if path else []
    on_the_way = (model.get_submodule(".".join(parts[:depth])) for depth in range(len(parts) + 1))
    return any(
        type(module).train is not torch.nn.Module.train or "train" in vars(module)
        for module in on_the_way
        if not isinstance(module, torch.nn.modules.batchnorm._NormBase) or "train" in vars(module)
    )


def _freezing(layer: Layer) -> Callable[[Subject], None]:
    def apply(subject: Subject) -> None:
        assert subject.model is not None
        freeze(subject.model, where=lambda _, module: module is layer.module)

    return apply


RULE = ThawedFreeze()
