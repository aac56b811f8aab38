"""A model as it was: everything that running it, or mending it, may have changed."""

from __future__ import annotations

import random
from array import array
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..nn._base import is_batch_norm

__all__ = ["Keeping", "same_bits"]

# A container of a class of the user's own is read and filled by the functions of the first of these that it is.
_CONTAINERS: tuple[Any, ...] = (OrderedDict, defaultdict, dict, list, set, deque)

# As these, values are compared by their bits; of complex128 each part is.
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")


class Keeping:
    """Remembers a model, and puts it back: bit for bit, in the same objects.

    Of every module the class and the attributes; of these, what dictionaries, lists and sets hold (parameters, buffers,
    hooks, a cache that ``forward`` fills), however deep, those of classes of their own (``Counter``) with their
    attributes; of every tensor among them the memory, the values, ``requires_grad``, ``grad`` and hooks; of arrays and
    ``bytearray`` the values; of generators of random numbers the state. What lies in other objects of the user's own is
    not looked at.

    Args:
        model: The model; None where only ``also`` is to be remembered.
        optimizer: Its ``param_groups`` and state are remembered as well.
        also: Further modules and tensors.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(2))
        >>> keeping = Keeping(model)
        >>> _ = model(torch.randn(4, 2)), model.eval()
        >>> keeping.restore()
        >>> model[0].running_mean, model.training
        (tensor([0., 0.]), True)
    """

    def __init__(
        self,
        model: torch.nn.Module | None,
        optimizer: torch.optim.Optimizer | None = None,
        also: Iterable[torch.nn.Module | Tensor] = (),
    ) -> None:
        others = list(also)
        roots = [each for each in (model, *others) if isinstance(each, torch.nn.Module)]
        modules = list({id(module): module for root in roots for module in root.modules()}.values())
        for module in modules:
            if is_batch_norm(module):
                _ = module.running_mean  # a layer whose last call still waits moves its statistics now, not later
        # Of what is scripted only tensors: the rest lies in C++.
        scripted = [each for each in modules if isinstance(each, torch.jit.ScriptModule)]
        own = [each for each in modules if not isinstance(each, torch.jit.ScriptModule)]
        self._modules = [(module, type(module), dict(module.__dict__)) for module in own]
        self._containers: list[tuple[Any, Any, Any]] = []
        self._tensors: list[_Kept] = []
        self._arrays: list[tuple[Any, Any]] = []
        self._generators: list[tuple[Callable[[Any], object], Any]] = []
        held = [value for _, _, attributes in self._modules for value in attributes.values()]
        held += [each for each in others if isinstance(each, Tensor)]
        held += [tensor for each in scripted for tensor in (*each.parameters(), *each.buffers())]
        self._remember(held if optimizer is None else [*held, optimizer.param_groups, optimizer.state])

    def _remember(self, waiting: list[Any]) -> None:
        seen: set[int] = set()
        while waiting:
            value = waiting.pop()
            if id(value) in seen:
                continue
            seen.add(id(value))
            generator = _generator(value)
            if isinstance(value, Tensor):
                if not torch.nn.parameter.is_lazy(value):
                    self._tensors.append(_Kept.of(value))
            elif isinstance(value, np.ndarray):
                self._arrays.append((value, value.copy()))
            elif generator is not None:
                self._generators.append(generator)
            elif isinstance(value, bytearray | array):
                self._generators.append((partial(value.__setitem__, slice(None)), value[:]))
            elif isinstance(value, _CONTAINERS):
                base = next(each for each in _CONTAINERS if isinstance(value, each))
                self._containers.append((base, value, base.copy(value)))
                waiting.extend(dict.values(value) if isinstance(value, dict) else base.__iter__(value))
                if type(value) is not base and hasattr(value, "__dict__"):
                    waiting.append(value.__dict__)
            elif isinstance(value, tuple):
                waiting.extend(value)

    def without_gradients(self) -> None:
        """Takes gradients and what waits for them away, so that a backward pass writes and starts nothing else."""
        for kept in self._tensors:
            if kept.tensor.is_leaf:
                kept.tensor.grad = None
            for _, hooks, _ in kept.hooks:
                if hooks is not None:
                    hooks.clear()

    def restore(self) -> None:
        """All as it was; also twice."""
        for module, cls, attributes in self._modules:
            if type(module) is not cls:
                module.__class__ = cls
            module.__dict__.clear()
            module.__dict__.update(attributes)
        for base, container, content in self._containers:
            base.clear(container)
            (base.extend if base in (list, deque) else base.update)(container, content)
        with torch.no_grad():
            for kept in self._tensors:
                kept.restore()
        for kept_array, values in self._arrays:
            kept_array[...] = values
        for put, state in self._generators:
            put(state)


@dataclass(frozen=True, eq=False)
class _Kept:
    """A tensor as it was.

    Attributes:
        tensor: It.
        memory: Another tensor on the same memory; None where that cannot be told.
        values: A copy.
        requires_grad: Whether it did.
        gradient: Its gradient, and a copy of that.
        hooks: For each kind of hooks, the dictionary that holds them, and a copy of that.
    """

    tensor: Tensor
    memory: Tensor | None
    values: Tensor
    requires_grad: bool
    gradient: tuple[Tensor, Tensor] | None
    hooks: list[tuple[str, dict[int, Any] | None, dict[int, Any]]]

    @classmethod
    def of(cls, tensor: Tensor) -> _Kept:
        gradient = tensor.grad if tensor.is_leaf else None
        hooks = [(name, each, dict(each or {})) for name in _HOOKS for each in (getattr(tensor, name, None),)]
        return cls(
            tensor,
            tensor.detach() if _has_memory(tensor) else None,
            tensor.detach().clone(),
            tensor.requires_grad,
            None if gradient is None else (gradient, gradient.detach().clone()),
            hooks,
        )

    def restore(self) -> None:
        """As it was; also twice."""
        tensor = self.tensor
        if self.memory is not None and not _same_memory(tensor, self.memory):
            tensor.data = self.memory
        _write(tensor, self.values)
        if tensor.is_leaf:
            if tensor.requires_grad != self.requires_grad:
                tensor.requires_grad_(self.requires_grad)
            tensor.grad = None if self.gradient is None else self.gradient[0]
            if self.gradient is not None:
                _write(*self.gradient)
        for name, hooks, content in self.hooks:
            if hooks is not None:
                hooks.clear()
                hooks.update(content)
            if getattr(tensor, name, None) is not hooks:
                setattr(tensor, name, hooks)


def _generator(value: Any) -> tuple[Callable[[Any], object], Any] | None:
    """What puts a generator of random numbers back, and its state; None for anything else."""
    if isinstance(value, torch.Generator):
        return value.set_state, value.get_state()
    if isinstance(value, np.random.Generator):
        bits = value.bit_generator
        return lambda state: setattr(bits, "state", state), bits.state
    if isinstance(value, np.random.RandomState):
        return value.set_state, value.get_state()
    if isinstance(value, random.Random):
        return value.setstate, value.getstate()
    return None


def _has_memory(tensor: Tensor) -> bool:
    plain = type(tensor) in (Tensor, torch.nn.Parameter, torch.nn.Buffer)
    return plain and tensor.layout is torch.strided and tensor.device.type != "meta"


def _same_memory(one: Tensor, other: Tensor) -> bool:
    return (
        _has_memory(one)
        and one.data_ptr() == other.data_ptr()
        and (one.shape, one.stride(), one.dtype, one.device) == (other.shape, other.stride(), other.dtype, other.device)
    )


def _write(tensor: Tensor, values: Tensor) -> None:
    # Only what differs. Versions do not tell, for torch's own batch norm moves its buffers without raising them.
    if same_bits(tensor, values):
        return
    # A tensor of inference mode can be written there only; any other must not become one.
    context: Callable[[], Any] = torch.inference_mode if tensor.is_inference() else nullcontext
    with context():
        # By .data, whose version is its own: to a graph that the user holds nothing has changed. (That of a sparse
        # tensor has values of its own.)
        (tensor.data if tensor.layout is torch.strided else tensor).copy_(values)


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same bytes: NaN is NaN then, and 0 is not -0. False where that cannot be told."""
    if one.shape != other.shape or one.dtype != other.dtype or one.device != other.device:
        return False
    if one.device.type == "meta":
        return True
    if one.layout is not torch.strided or other.layout is not torch.strided:
        return False
    integers = _INTEGERS.get(one.itemsize)
    if integers is None:
        one, other = torch.view_as_real(one), torch.view_as_real(other)
        integers = torch.int64
    return torch.equal(one.detach().view(integers), other.detach().view(integers))
