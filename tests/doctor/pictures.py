"""All of a model that must be as it was, to the last bit, and all around it."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["around", "picture"]


def picture(model: nn.Module) -> dict[str, Any]:
    """Modules by their paths: class, attributes, what containers hold; tensors by identity, memory, bytes and hooks."""
    return {
        path: (type(module), {name: _seen(value) for name, value in vars(module).items()})
        for path, module in model.named_modules(remove_duplicate=False)
    }


def _seen(value: Any) -> Any:
    if isinstance(value, Tensor):
        gradient = value.grad if value.is_leaf else None
        hooks = [list((getattr(value, name, None) or {}).values()) for name in ("_backward_hooks", *_AFTER)]
        return id(value), value.data_ptr(), _bytes(value), value.requires_grad, hooks, id(gradient), _bytes(gradient)
    if isinstance(value, dict):
        return id(value), [(key, _seen(each)) for key, each in value.items()]
    if isinstance(value, list | tuple | set):
        return id(value), [_seen(each) for each in value]
    if isinstance(value, np.ndarray):
        return id(value), value.tobytes()
    state = value.get_state() if isinstance(value, torch.Generator) else getattr(value, "bit_generator", value)
    return id(value), _bytes(state) if isinstance(state, Tensor) else str(getattr(state, "state", ""))


_AFTER = ("_post_accumulate_grad_hooks",)


def _bytes(tensor: Tensor | None) -> Any:
    if tensor is None:
        return None
    if tensor.is_sparse:
        return [_bytes(each) for each in (tensor._indices(), tensor._values())]
    flat = tensor.detach().contiguous().flatten().view(torch.uint8)
    return tensor.dtype, tuple(tensor.shape), flat.numpy().tobytes()


def around() -> tuple[Any, ...]:
    """Random numbers, and the modes of autograd."""
    return (
        random.getstate(),
        str(np.random.get_state()),
        _bytes(torch.get_rng_state()),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
    )
