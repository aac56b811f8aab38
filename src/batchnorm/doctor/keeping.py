"""A model as it was: everything that running it, or mending it, may have changed."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

__all__ = ["Keeping"]

_CONTAINERS = (dict, OrderedDict, defaultdict, list, set, deque)


class Keeping:
    """Remembers a model, and puts it back: bit for bit, in the same objects.

    Of every module the class, the attributes, what its dictionaries, lists and sets hold (parameters, buffers, hooks,
    a cache that ``forward`` fills), of every parameter and buffer the values, ``requires_grad``, ``grad`` and hooks.
    What lies deeper in objects of the user's own is not looked at.

    Args:
        model: The model.
        optimizer: Its ``param_groups`` and state are remembered as well.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(2))
        >>> keeping = Keeping(model)
        >>> _ = model(torch.randn(4, 2)), model.eval()
        >>> keeping.restore()
        >>> model[0].running_mean, model.training
        (tensor([0., 0.]), True)
    """

    def __init__(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        self._modules = [(module, type(module), dict(module.__dict__)) for module in model.modules()]
        self._containers: list[tuple[Any, Any]] = []
        self._remembered: set[int] = set()
        for _, _, attributes in self._modules:
            for value in attributes.values():
                self._remember(value)
        tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        self._tensors = [
            (tensor, tensor.detach().clone(), tensor.requires_grad, tensor.grad) for tensor in tensors.values()
        ]
        self._gradients = [
            (tensor.grad, tensor.grad.detach().clone()) for tensor in tensors.values() if tensor.grad is not None
        ]
        self._hooks = [
            (tensor, name, hooks, dict(hooks))
            for tensor in tensors.values()
            for name in ("_backward_hooks", "_post_accumulate_grad_hooks")
            if (hooks := getattr(tensor, name, None)) is not None
        ]
        if optimizer is not None:
            self._remember(optimizer.param_groups)
            for group in optimizer.param_groups:
                self._remember(group)
                self._remember(group["params"])
            self._remember(optimizer.state)

    def _remember(self, value: Any) -> None:
        if type(value) in _CONTAINERS and id(value) not in self._remembered:
            self._remembered.add(id(value))
            self._containers.append((value, value.copy()))

    def without_gradients(self) -> None:
        """Takes gradients and what waits for them away, so that a backward pass writes and starts nothing else."""
        for tensor, _, _, _ in self._tensors:
            tensor.grad = None
        for _, _, hooks, _ in self._hooks:
            hooks.clear()

    def restore(self) -> None:
        """All as it was; also twice."""
        for module, cls, attributes in self._modules:
            if type(module) is not cls:
                module.__class__ = cls
            module.__dict__.clear()
            module.__dict__.update(attributes)
        for container, content in self._containers:
            if isinstance(container, list | deque):
                container.clear()
                container.extend(content)
            else:
                container.clear()
                container.update(content)
        for tensor, name, hooks, content in self._hooks:
            hooks.clear()
            hooks.update(content)
            if getattr(tensor, name, None) is not hooks:
                setattr(tensor, name, hooks)
        with torch.no_grad():
            for tensor, values, requires_grad, gradient in self._tensors:
                _write(tensor, values)
                if tensor.requires_grad != requires_grad:
                    tensor.requires_grad_(requires_grad)
                tensor.grad = gradient
            for gradient, values in self._gradients:
                _write(gradient, values)


def _write(tensor: Tensor, values: Tensor) -> None:
    # Only what differs: a graph that the user holds must not hear of a change. Versions do not tell, for torch's own
    # batch norm moves its buffers without raising them.
    if _same_bits(tensor, values):
        return
    # A tensor of inference mode can be written there only; any other must not become one.
    context: Callable[[], Any] = torch.inference_mode if tensor.is_inference() else nullcontext
    with context():
        if tensor.shape != values.shape or tensor.dtype != values.dtype:
            tensor.data = values.clone()  # .to() or a change of dtype in between
        else:
            tensor.copy_(values)


def _same_bits(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype or one.device != other.device:
        return False
    if one.device.type == "meta":
        return True
    # As bytes: NaN is NaN, and 0 is not -0.
    bytes_of = [each.detach().contiguous().flatten().view(torch.uint8) for each in (one, other)]
    return torch.equal(*bytes_of)
