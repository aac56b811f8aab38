"""``freeze`` and ``unfreeze``: running statistics that neither a batch nor ``model.train()`` moves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.modules.lazy import LazyModuleMixin
from torch.utils.weak import WeakIdKeyDictionary

from ..errors import ArgumentError
from ..nn._base import is_batch_norm
from ..nn._variant import Variant, by_name
from ..nn.frozen import Frozen
from .layers import named

__all__ = ["freeze", "unfreeze"]

Where: TypeAlias = Callable[[str, torch.nn.Module], bool]


def freeze(model: torch.nn.Module, *, where: Where | None = None, affine: bool = False) -> list[str]:
    r"""Fixes the running statistics of a model's batch norms, in place, and has them used from now on.

    .. math:: y = \frac{x - \mathrm{running\_mean}}{\sqrt{\mathrm{running\_var} + \epsilon}} \cdot \gamma + \beta,
              \quad \text{in training too}

    ``layer.eval()`` does this until somebody calls ``model.train()``, which a training loop does every epoch. A frozen
    layer stays: it notes the mode that is asked of it, and :func:`unfreeze` hands it over. Gradients are those of
    evaluation mode. It works on every batch norm of torch and of this library, and on subclasses with a ``forward`` of
    their own that go by ``self.training``. Layers that are frozen already stay so.

    No parameter, buffer or module is replaced: optimizers, hooks and ``state_dict`` are as before. A frozen layer is
    still an instance of its class, and can be copied, pickled and saved.

    Args:
        model: Any module.
        where: Called with the path and the layer of each norm, says whether to freeze it.
        affine: Whether gamma and beta are fixed as well, by ``requires_grad = False``.

    Returns:
        The paths of the layers that were changed.

    Raises:
        ArgumentError: A layer has no running statistics, or is scripted. Nothing has changed then.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU())
        >>> freeze(model)
        ['1']
        >>> _ = model.train()(torch.randn(2, 3, 8, 8))
        >>> int(model[1].num_batches_tracked), isinstance(model[1], torch.nn.BatchNorm2d)
        (0, True)
        >>> model[1]
        BatchNorm2d(8, ..., frozen)
        >>> unfreeze(model), model[1].training
        (['1'], True)
    """
    chosen = _chosen(model, where)
    lazy = [f"{path} ({type(layer).__name__})" for path, layer in chosen if isinstance(layer, LazyModuleMixin)]
    if lazy:
        raise ArgumentError(
            f"lazy layers take another class at their first input: {', '.join(lazy)}.", "run the model once before."
        )
    without = [named(path, layer) for path, layer in chosen if layer.running_mean is None or layer.running_var is None]
    if without:
        raise ArgumentError(
            f"without running statistics there is nothing to freeze: {', '.join(without)}.",
            "leave these layers out by where=.",
        )
    fresh = [layer for _, layer in chosen if not isinstance(layer, Frozen)]
    classes = [_frozen(type(layer)) for layer in fresh]
    # Each flag as it is before any is changed: two layers may share a gamma.
    flags = {layer: _flags(layer) for _, layer in chosen if affine and "_thawed_flags" not in layer.__dict__}
    agreed = {
        layer
        for path, layer in chosen
        if (parent := _parent(model, path)) is not None and parent.training == layer.training
    }
    kept = [_Kept(layer) for _, layer in chosen]
    try:
        for layer, cls in zip(fresh, classes, strict=True):
            layer.__dict__["asked_mode"] = layer.training
            layer.__dict__["_agreed"] = layer in agreed
            layer.__class__ = cls
        for layer, own in flags.items():
            layer.__dict__["_thawed_flags"] = own
            for name, parameter in layer.named_parameters():
                _holders.setdefault(parameter, WeakKeyDictionary())[layer] = own[name]
                parameter.requires_grad_(False)
        return [path for path, layer in chosen if layer in flags or layer in fresh]
    except BaseException:
        for each in kept:
            each.restore()
        raise


def unfreeze(model: torch.nn.Module, *, where: Where | None = None) -> list[str]:
    """Undoes :func:`freeze`, in place and exactly.

    Each layer is of its class again, in the mode that ``model.train()`` or ``model.eval()`` last asked of it, or else
    the one it had before; gamma and beta require gradients as they did. Once undoes any number of freezes.
    ``FrozenBatchNorm*`` layers were built frozen and stay so: ``convert(model, "batch")`` thaws those.

    Args:
        model: Any module.
        where: Called with the path and the layer of each norm, says whether to thaw it.

    Returns:
        The paths of the layers that were changed.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2).eval())
        >>> _ = freeze(model, affine=True)
        >>> unfreeze(model)
        ['0', '1']
        >>> model[0].training, model[1].training, model[0].weight.requires_grad
        (True, False, True)
    """
    chosen = [
        (path, layer)
        for path, layer in _chosen(model, where)
        if isinstance(layer, _FrozenHere) or "_thawed_flags" in layer.__dict__
    ]
    changed = [named(path, layer) for path, layer in chosen if isinstance(layer, _FrozenHere) and not _is_own(layer)]
    if changed:
        raise ArgumentError(
            f"another class was put before the layer's own while it was frozen: {', '.join(changed)}.",
            "undo that first (parametrizations, fully_shard), or freeze after it.",
        )
    modes = {layer: _mode(model, path, layer) for path, layer in chosen if isinstance(layer, _FrozenHere)}
    kept = [_Kept(layer) for _, layer in chosen]
    try:
        for _, layer in chosen:
            if layer in modes:
                thawed: Any = type(layer).thawed_class
                layer.__class__ = thawed
                for name in ("asked_mode", "_agreed", "_mode_written"):
                    layer.__dict__.pop(name, None)
                layer.training = modes[layer]
                for child in layer.children():  # a domain's statistics
                    child.train(modes[layer])
            for name, flag in layer.__dict__.pop("_thawed_flags", {}).items():
                parameter = layer._parameters.get(name)
                if parameter is not None and not _held_by_another(parameter, layer):
                    parameter.requires_grad_(flag)
        return [path for path, _ in chosen]
    except BaseException:
        for each in kept:
            each.restore()
        raise


def _is_own(layer: torch.nn.Module) -> bool:
    """Whether a frozen layer's class is the one that freezing gave it."""
    return "thawed_class" in vars(type(layer))


def _parent(model: torch.nn.Module, path: str) -> torch.nn.Module | None:
    return model.get_submodule(path.rpartition(".")[0]) if path else None


def _mode(model: torch.nn.Module, path: str, layer: Any) -> bool:
    """What a layer's ``training`` would be, had it not been frozen."""
    parent = _parent(model, path)
    if "_mode_written" in layer.__dict__ and layer.__dict__.get("_agreed") and parent is not None:
        return parent.training
    asked: bool = layer.asked_mode
    return asked


# Whose gamma and beta are fixed by which layers: of two that share one, the first to thaw does not let it go.
_holders: Any = WeakIdKeyDictionary()


def _held_by_another(parameter: Tensor, layer: torch.nn.Module) -> bool:
    holders = _holders.get(parameter, {})
    holders.pop(layer, None)
    return any("_thawed_flags" in other.__dict__ for other in holders)


def _flags(layer: torch.nn.Module) -> dict[str, bool]:
    """Whether each parameter requires a gradient where no layer holds it fixed."""
    flags = {}
    for name, parameter in layer.named_parameters():
        before = [flag for other, flag in _holders.get(parameter, {}).items() if "_thawed_flags" in other.__dict__]
        flags[name] = before[0] if before else parameter.requires_grad
    return flags


def _chosen(model: torch.nn.Module, where: Where | None) -> list[tuple[str, Any]]:
    scripted = [
        (path, module.original_name)
        for path, module in model.named_modules()
        if isinstance(module, torch.jit.ScriptModule) and "BatchNorm" in module.original_name
    ]
    if scripted:
        raise ArgumentError(
            f"scripted layers cannot be changed: {', '.join(f'{path} ({name})' for path, name in scripted)}.",
            "do it before torch.jit.script.",
        )
    return [
        (path, layer)
        for path, layer in model.named_modules()
        if is_batch_norm(layer) and (where is None or where(path, layer))
    ]


class _Kept:
    """What freezing changes of a layer, as it was."""

    def __init__(self, layer: torch.nn.Module) -> None:
        self.layer, self.cls, self.attributes = layer, type(layer), dict(layer.__dict__)
        self.flags = [(parameter, parameter.requires_grad) for parameter in layer.parameters()]

    def restore(self) -> None:
        self.layer.__class__ = self.cls
        self.layer.__dict__.clear()
        self.layer.__dict__.update(self.attributes)
        for parameter, flag in self.flags:
            parameter.requires_grad_(flag)


class _FrozenHere(Frozen):
    """What stands before a layer's own class while it is frozen."""

    thawed_class: ClassVar[type[torch.nn.Module]]

    def __init_subclass__(cls) -> None:
        """Nothing: who keeps a list of a class's subclasses need not hear of these."""

    def reset_running_stats(self) -> None:
        """Does nothing: ``update_bn`` of torch resets first, and would take no others."""

    def extra_repr(self) -> str:
        """As the layer's, and that it is frozen."""
        return ", ".join(filter(None, [super().extra_repr(), "frozen"]))

    def __reduce_ex__(self, protocol: Any) -> Any:
        # By the layer's own class: this one has no name to be found by.
        reduced: Any = super().__reduce_ex__(max(protocol, 2))
        make, arguments, *state = reduced
        frozen, base = type(self), self.thawed_class
        if isinstance(self, Variant):
            arguments = by_name(base)
        else:
            make = base if make is frozen else make
            arguments = tuple([base if each is frozen else each for each in arguments])
        return (_rebuild, (make, arguments), *state)


_CLASSES: dict[type[torch.nn.Module], type[torch.nn.Module]] = {}


def _frozen(base: type[torch.nn.Module]) -> type[torch.nn.Module]:
    if base not in _CLASSES:
        own = {
            "__module__": base.__module__,
            "__qualname__": base.__qualname__,
            "__doc__": base.__doc__,
            "thawed_class": base,
        }
        _CLASSES[base] = type(base.__name__, (_FrozenHere, base), own)
    return _CLASSES[base]


def _rebuild(make: Callable[..., torch.nn.Module], arguments: tuple[Any, ...]) -> torch.nn.Module:
    layer = make(*arguments)
    layer.__class__ = _frozen(type(layer))
    return layer
