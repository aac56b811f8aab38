"""Models to recalibrate, what is to come out, and a picture of all that must stay."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from batchnorm import reference

ORDERS = ("one-pass", "layer-by-layer")


def network(norm=torch.nn.BatchNorm2d) -> torch.nn.Sequential:
    """Two norms with dropout between them, trained by nobody."""
    nn = torch.nn
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, bias=False), norm(3), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(3, 4, 3, bias=False), norm(4)
    )


def expected(parts) -> tuple[np.ndarray, np.ndarray]:
    """Mean and unbiased variance over all values of the parts, by the reference."""
    pooled = reference.pooled_moments(reference.moments(part.double().numpy()) for part in parts)
    return pooled.mean, pooled.m2 / (pooled.count - 1)


def close(layer: torch.nn.Module, moments, rtol: float = 1e-6) -> bool:
    mean, var = moments
    return bool(
        np.allclose(layer.running_mean.double(), mean, rtol=rtol, atol=rtol * np.sqrt(var).max())
        and np.allclose(layer.running_var.double(), var, rtol=rtol)
    )


def picture(model: torch.nn.Module) -> list[object]:
    """Values to the last bit, modes, momenta, and which hooks there are."""
    state = [(name, value.numpy().tobytes()) for name, value in model.state_dict().items()]
    modules = [
        (
            name,
            module.training,
            getattr(module, "momentum", None),
            list(module._forward_pre_hooks),
            list(module._forward_pre_hooks_with_kwargs),
            list(module._forward_hooks),
            sorted(module.__dict__.keys() - {"_waiting"}),
        )
        for name, module in model.named_modules()
    ]
    return [state, modules]


def images(number: int, size: int = 7) -> Tensor:
    return torch.randn(number, 2, size, size) * 3 + 1
