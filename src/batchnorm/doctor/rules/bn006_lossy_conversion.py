"""lossy-conversion: the norms were converted, and something of them was lost: an activation, a flag, the statistics.

## What it does

With `before=`, a copy of the model from before its norms were converted, compares each norm with what it was. Without,
looks for what such a conversion leaves behind: a plain norm that holds an activation which nothing calls, and a
`torch.nn.SyncBatchNorm` that trains in a model in evaluation mode.

## Why it is bad

`torch.nn.SyncBatchNorm.convert_sync_batchnorm` replaces whatever derives from torch's batch norm by a new layer. A
subclass loses its `forward`, so an activation in it is gone without a word; a ghost norm, a layer frozen by its class,
hooks and further attributes are lost as well. Converters by hand forget more: momentum, eps, `requires_grad`, the
`training` flag, and gamma, beta and statistics themselves.

## Evidence

What is not as it was, each by its old and new value. A lost `forward`, activation or freeze and lost values are errors,
the rest warnings. Of dtypes and `requires_grad` only what differs while the parameters of other layers are as before;
of `training` only where the layer's parent has the flag that it had. What `batchnorm.convert` has changed is remembered
by the layer, and not lost.

## Example

    >>> import copy, torch, batchnorm
    >>> class NormAct(torch.nn.BatchNorm1d):
    ...     def forward(self, input):
    ...         return torch.relu(super().forward(input))
    >>> original = torch.nn.Sequential(torch.nn.Linear(4, 8), NormAct(8))
    >>> model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(original))  # else it changes the original
    >>> for finding in batchnorm.diagnose(model, before=original, select=["BN006"]).findings:
    ...     print(finding)
    1: error BN006 lossy-conversion: it was a NormAct and is a SyncBatchNorm: its own forward is lost.

## Use instead

`batchnorm.convert` leaves the original as it is, names what it cannot convert, and keeps the rest.

    >>> model = batchnorm.convert(torch.nn.Sequential(torch.nn.Linear(4, 8), batchnorm.BatchNormAct1d(8)), "sync")
    >>> model[1].activation
    Activation('relu')

## Fix safety

Safe where nothing is lost but momentum, eps, the training flag, `requires_grad` and values that are those of a new
layer: they are set to what they are in `before`, in place. A lost `forward`, activation, kind, dtype, parameter or hook
cannot be put back into the layer: convert the original.

## References

- [pytorch/pytorch#187298](https://github.com/pytorch/pytorch/issues/187298)
- [huggingface/pytorch-image-models#1254](https://github.com/huggingface/pytorch-image-models/issues/1254)
- [open-mmlab/mmengine#1624](https://github.com/open-mmlab/mmengine/issues/1624)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ...activation import IDENTITY
from ...errors import ArgumentError
from ...nn._base import is_batch_norm
from ...nn.frozen import Frozen
from ...population.engine import unwrapped
from ...surgery.kinds import activation_of, find
from ..evidence import Evidence, Layer
from ..finding import Finding, Fix, Measurement, Severity, Subject
from ..rule import Need, Rule

_SETTINGS = ("momentum", "eps", "track_running_stats", "affine")
_TENSORS = ("weight", "bias", "running_mean", "running_var")
_TORCH = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d, torch.nn.SyncBatchNorm)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True)
class _Loss:
    """One thing that is not as it was."""

    what: str
    message: str
    was: object
    now: object
    severity: Severity = "warning"
    mend: Callable[[], None] | None = None


class LossyConversion(Rule):
    """See the file's docstring."""

    code = "BN006"
    name = "lossy-conversion"
    severity = "warning"
    needs = frozenset({Need.MODEL})

    def check(self, evidence: Evidence) -> Iterator[Finding]:
        """One finding a layer.

        Raises:
            ArgumentError: ``before`` is the model itself.
        """
        before, model = evidence.settings.before, evidence.model
        assert model is not None
        if before is None:
            yield from self._remains(evidence, model)
            return
        before = unwrapped(before)
        if before is model:
            raise ArgumentError(
                "before is the model itself.",
                "converters of torch change the model that they are given: give copy.deepcopy(model) from before.",
            )
        others = _Others(before, model)
        former = dict(before.named_modules(remove_duplicate=False))
        for layer in evidence.layers:
            old = former.get(layer.path)
            if old is None or layer.module is None or old is layer.module or not is_batch_norm(old):
                continue
            lost = list(_lost(old, layer, others))
            if lost:
                yield self._told(layer, lost)

    def _told(self, layer: Layer, lost: list[_Loss]) -> Finding:
        lost.sort(key=lambda each: each.severity != "error")
        mends = [each.mend for each in lost if each.mend is not None]
        return self.found(
            layer,
            f"{'; '.join(each.message for each in lost)}.",
            {each.what: Measurement(str(each.now), str(each.was), "equal to") for each in lost},
            'model = batchnorm.convert(original, "sync")  # or the kind that you want',
            severity=lost[0].severity,
            fix=Fix("sets what was lost to what it was before", _applied(mends)) if len(mends) == len(lost) else None,
        )

    def _remains(self, evidence: Evidence, model: torch.nn.Module) -> Iterator[Finding]:
        """What a conversion has left behind."""
        modes = _parents_training(model)
        for layer in evidence.layers:
            module = layer.module
            if module is None or not _computes_plainly(module) or any(getattr(module, name) for name in _HOOKS):
                continue
            idle = [name for name, child in module.named_children() if not isinstance(child, torch.nn.Identity)]
            if idle and type(module) in _TORCH:
                names = ", ".join(f"{name} ({type(module.get_submodule(name)).__name__})" for name in idle)
                yield self.found(
                    layer,
                    f"this {layer.kind} holds {names}, which it never calls: a layer with a forward of its own was "
                    "converted to it.",
                    {"modules that are not called": Measurement(len(idle), 0)},
                    'model = batchnorm.convert(original, "sync")  # it names what it cannot convert',
                    severity="error",
                )
            elif type(module) is torch.nn.SyncBatchNorm and module.training and not modes.get(layer.path, True):
                yield self.found(
                    layer,
                    "this SyncBatchNorm trains in a model in evaluation mode: its training flag is that of a new "
                    "layer.",
                    {"training": Measurement("True", "False", "equal to")},
                    "model.eval()",
                    fix=Fix("sets its training flag to False", _applied([partial(module.train, False)])),
                )


def _applied(mends: list[Callable[[], Any]]) -> Callable[[Subject], None]:
    def apply(_: Subject) -> None:
        with torch.no_grad():
            for mend in mends:
                mend()

    return apply


def _lost(old: Any, layer: Layer, others: _Others) -> Iterator[_Loss]:
    new: Any = layer.module
    yield from _lost_function(old, new)
    if isinstance(new, Frozen) or isinstance(old, Frozen):
        return  # who freezes or thaws changes the flags below on purpose
    for name in _SETTINGS:
        was, now = getattr(old, name), getattr(new, name)
        if was != now:
            mend = None if name in ("affine", "track_running_stats") else partial(setattr, new, name, was)
            yield _Loss(name, f"{name} was {was} and is {now}", was, now, mend=mend)
    if old.training != new.training and others.same_mode(layer.path):
        mend = partial(new.train, old.training)
        yield _Loss(
            "training", f"training was {old.training} and is {new.training}", old.training, new.training, mend=mend
        )
    for name in _TENSORS:
        yield from _lost_tensor(name, getattr(old, name, None), getattr(new, name, None), others)
    yield from _lost_values(old, new)
    for name in _HOOKS:
        was, now = len(getattr(old, name)), len(getattr(new, name))
        if now < was:
            yield _Loss(name.strip("_"), f"{was - now} of its {name.strip('_').replace('_', ' ')} are lost", was, now)


def _lost_function(old: Any, new: Any) -> Iterator[_Loss]:
    """What it computes."""
    if isinstance(new, type(old)) or not _computes_plainly(new):
        return
    was, now = _class(old), _class(new)
    words = f"it was a {was} and is a {now}"
    found, is_now = find(old), find(new)
    if not _computes_plainly(old):
        yield _Loss("class", f"{words}: its own forward is lost", was, now, "error")
    elif activation_of(old) not in (IDENTITY, activation_of(new)):
        activation = activation_of(old)
        yield _Loss("activation", f"{words}: its activation is lost", activation.name, activation_of(new).name, "error")
    elif isinstance(old, Frozen) and not isinstance(new, Frozen):
        yield _Loss("class", f"{words}: it is no longer frozen", was, now, "error")
    elif (
        found is not None
        and is_now is not None
        and found.kind.arguments
        and found.kind.name not in (is_now.kind.name, "sync")
        and "_converted" not in vars(new)
    ):
        lost = ", ".join(f"{name}={getattr(old, name)}" for name in found.kind.arguments)
        yield _Loss("class", f"{words}: {lost} is lost", was, now)


def _class(layer: Any) -> str:
    thawed = getattr(layer, "thawed_class", None) if isinstance(layer, Frozen) else None
    return type(layer).__name__ if thawed is None else f"frozen {thawed.__name__}"


def _computes_plainly(layer: Any) -> bool:
    """Whether it has the forward of torch's or this library's class, and none of its own."""
    found = find(layer)
    return found is not None and type(layer).forward is found.base.forward and "forward" not in vars(layer)


def _lost_tensor(name: str, old: Any, new: Any, others: _Others) -> Iterator[_Loss]:
    if (old is None) != (new is None):
        was, now = ("there", "not there") if new is None else ("not there", "there")
        yield _Loss(name, f"{name} was {was} and is {now}", was, now, "error" if new is None else "warning")
    if old is None or new is None:
        return
    if old.dtype != new.dtype and others.same("dtype"):
        yield _Loss(f"{name}.dtype", f"{name} was {old.dtype} and is {new.dtype}", old.dtype, new.dtype)
    if old.requires_grad != new.requires_grad and others.same("requires_grad"):
        message = f"requires_grad of {name} was {old.requires_grad} and is {new.requires_grad}"
        mend = partial(new.requires_grad_, old.requires_grad)
        yield _Loss(f"{name}.requires_grad", message, old.requires_grad, new.requires_grad, mend=mend)


def _lost_values(old: Any, new: Any) -> Iterator[_Loss]:
    """Values that are those of a new layer, where they were others."""
    for names, initial in ((("weight", "bias"), (1.0, 0.0)), (("running_mean", "running_var"), (0.0, 1.0))):
        pairs = [
            (getattr(old, name, None), getattr(new, name, None), value)
            for name, value in zip(names, initial, strict=True)
        ]
        there = [
            (was, now, value)
            for was, now, value in pairs
            if was is not None and now is not None and _readable(was, now)
        ]
        if not there or any(bool((now != value).any()) for _, now, value in there):
            continue
        if all(bool((was == value).all()) for was, _, value in there):
            continue
        seen = getattr(new, "num_batches_tracked", None)
        if names[0] == "running_mean" and seen is not None and int(seen):
            continue
        what = "running statistics" if names[0] == "running_mean" else "gamma and beta"
        tensors = [(now, was) for was, now, _ in there]
        if names[0] == "running_mean" and seen is not None and old.num_batches_tracked is not None:
            tensors.append((seen, old.num_batches_tracked))
        mend = partial(_copied, tensors)
        yield _Loss(what, f"{what} are those of a new layer", "as before", "initial", "error", mend)


def _readable(was: Any, now: Any) -> bool:
    lazy = torch.nn.parameter.is_lazy(was) or torch.nn.parameter.is_lazy(now)
    return not lazy and was.shape == now.shape and not was.is_meta and not now.is_meta


def _copied(pairs: list[tuple[Any, Any]]) -> None:
    for new, old in pairs:
        new.copy_(old)


class _Others:
    """Whether what is not a norm is as it was: else the whole model has been changed, and not by the conversion."""

    def __init__(self, before: torch.nn.Module, model: torch.nn.Module) -> None:
        self._modes = _parents_training(before), _parents_training(model)
        old, new = (_parameters(each) for each in (before, model))
        self._pairs = [(old[path], new[path]) for path in old.keys() & new.keys()]

    def same(self, attribute: str) -> bool:
        """Whether an attribute of all other parameters is as it was."""
        return all(getattr(old, attribute) == getattr(new, attribute) for old, new in self._pairs)

    def same_mode(self, path: str) -> bool:
        """Whether the module that holds this one has the training flag that it had."""
        old, new = (modes.get(path) for modes in self._modes)
        return old is not None and old == new


def _parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {
        f"{path}.{name}": parameter
        for path, module in model.named_modules()
        if not is_batch_norm(module)
        for name, parameter in module.named_parameters(recurse=False)
    }


def _parents_training(model: torch.nn.Module) -> dict[str, bool]:
    """By path, the training flag of the module that holds it."""
    return {
        f"{path}.{name}" if path else name: module.training
        for path, module in model.named_modules(remove_duplicate=False)
        for name, _ in module.named_children()
    }


RULE = LossyConversion()
