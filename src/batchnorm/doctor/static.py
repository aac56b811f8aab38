"""What a model, a checkpoint or a loader shows as it is: nothing is run."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from ..errors import ArgumentError
from ..nn._base import is_batch_norm
from ..population.layers import frozen_norms
from .evidence import Evidence, Layer, Loader, Settings

__all__ = ["has_values", "loader_of", "of_tensors", "static"]

_TENSORS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def static(model: torch.nn.Module) -> list[Layer]:
    """The norms of a model as they are, each once, under its first path."""
    frozen = frozen_norms(model)
    return [_layer(path, module, frozen.get(path)) for path, module in model.named_modules() if is_batch_norm(module)]


def of_tensors(state: Mapping[str, Any], settings: Settings) -> Evidence:
    """What a checkpoint shows: a norm is wherever there are a running mean and a running variance.

    Raises:
        ArgumentError: There is no such thing.
    """
    prefixes = [name.removesuffix("running_mean") for name in state if name.split(".")[-1] == "running_mean"]
    layers = []
    for prefix in prefixes:
        tensors = {
            name: tensor.detach().cpu().clone()
            for name in _TENSORS
            if isinstance(tensor := state.get(f"{prefix}{name}"), Tensor)
        }
        if "running_mean" in tensors and "running_var" in tensors:
            layers.append(Layer(prefix.removesuffix("."), "", None, tensors))
    if not layers:
        raise ArgumentError(
            f"these {len(state)} entries hold no running_mean with a running_var beside it: no batch norm.",
            "give a state_dict, or the module itself.",
        )
    return Evidence(None, layers, settings=settings)


def _layer(path: str, module: _NormBase, frozen: str | None) -> Layer:
    tensors = {
        name: tensor.detach().cpu().clone()
        for name in _TENSORS
        if isinstance(tensor := getattr(module, name, None), Tensor) and has_values(tensor)
    }
    return Layer(
        path,
        type(module).__name__,
        module,
        tensors,
        {name: tensor.requires_grad for name, tensor in module.named_parameters(recurse=False)},
        module.eps,
        module.momentum,
        module.track_running_stats,
        module.training,
        frozen=frozen,
    )


def has_values(tensor: Tensor) -> bool:
    """Whether a tensor is neither lazy nor on the meta device."""
    return not torch.nn.parameter.is_lazy(tensor) and tensor.device.type != "meta"


def loader_of(batches: object) -> Loader | None:
    """What a ``DataLoader`` says about itself; None for other iterables."""
    if not isinstance(batches, torch.utils.data.DataLoader):
        return None
    try:
        samples = len(batches.dataset)  # type: ignore[arg-type]
    except TypeError:
        samples = None
    size = batches.batch_size
    last = None
    if size and samples is not None:
        with suppress(TypeError):
            samples = len(batches.sampler)  # type: ignore[arg-type]
        last = size if batches.drop_last else samples % size or size
    shuffled = not isinstance(batches.sampler, torch.utils.data.SequentialSampler)
    return Loader(size, samples, bool(batches.drop_last), last, shuffled)
