"""What a model, a checkpoint or a loader shows as it is: nothing is run."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.data import BatchSampler

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

    What cannot be one's (other libraries use these names as well, and files are damaged) is left out, with the reason.

    Raises:
        ArgumentError: There is no such thing.
    """
    prefixes = [name.removesuffix("running_mean") for name in state if name.split(".")[-1] == "running_mean"]
    layers, unread = [], {}
    for prefix in prefixes:
        tensors = {name: each for name in _TENSORS if isinstance(each := state.get(f"{prefix}{name}"), Tensor)}
        if "running_mean" not in tensors or "running_var" not in tensors:
            continue
        path = prefix.removesuffix(".")
        why = _unreadable(tensors)
        if why:
            unread[path] = why
        else:
            layers.append(Layer(path, "", None, {name: each.detach().cpu().clone() for name, each in tensors.items()}))
    if not layers:
        what = "no running_mean with a running_var beside it: no batch norm."
        if unread:
            what = f"no batch norm ({'; '.join(f'{path}: {why}' if path else why for path, why in unread.items())})."
        raise ArgumentError(
            f"these {len(state)} entries hold {what}",
            "give a state_dict, or the module itself.",
        )
    return Evidence(None, layers, settings=settings, unread=unread)


def _unreadable(tensors: Mapping[str, Tensor]) -> str:
    """Why these are no batch norm's tensors; empty where they are."""
    for name, each in tensors.items():
        if not has_values(each):
            return f"{name} has no values (it is lazy, or on the meta device)"
        if each.layout is not torch.strided:
            return f"{name} is {str(each.layout).removeprefix('torch.')}"
    count = tensors.get("num_batches_tracked")
    if count is not None and (count.numel() != 1 or count.is_complex() or not bool(torch.isfinite(count))):
        return "num_batches_tracked is no number"
    channels = {name: each for name, each in tensors.items() if each is not count}
    other = next((name for name, each in channels.items() if not each.is_floating_point()), None)
    if other is not None:
        return f"{other} is of {str(channels[other].dtype).removeprefix('torch.')}"
    shapes = {name: tuple(each.shape) for name, each in channels.items()}
    if () in shapes.values() or len(set(shapes.values())) > 1:
        return f"of shapes {', '.join(f'{shape} ({name})' for name, shape in shapes.items())}"
    return ""


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
    except (TypeError, NotImplementedError):
        samples = None
    size, drop_last, sampler = batches.batch_size, bool(batches.drop_last), batches.sampler
    cuts = batches.batch_sampler
    as_torch_does = isinstance(cuts, BatchSampler) and type(cuts).__iter__ is BatchSampler.__iter__
    if size is None and isinstance(cuts, BatchSampler) and as_torch_does:
        size, drop_last, sampler = cuts.batch_size, bool(cuts.drop_last), cuts.sampler
    last = None
    if size and samples is not None:
        with suppress(TypeError, NotImplementedError):
            samples = len(sampler)  # type: ignore[arg-type]
        last = size if drop_last else samples % size or size
    # One that cuts the batches its own way may draw them in any order.
    shuffled = not isinstance(sampler, torch.utils.data.SequentialSampler) or (size is None and cuts is not None)
    return Loader(size, samples, drop_last, last, shuffled)
