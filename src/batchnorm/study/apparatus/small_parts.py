"""Networks that are updated by a large batch and normalised by small parts of it, as on many devices of few images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...functional import batch_renorm
from ..arms import derive, norms
from ..error import StudyError

__all__ = ["InParts", "check_rows", "normalised_by", "renormalised_by", "tried"]

# Enough for two parts of two, as a layer of one value an image needs them.
_FEW = 4


def check_rows(model: nn.Module, images: Tensor) -> None:
    """Refuses a network one of whose norms sees anything but one row an image.

    Parts are counted in rows. Where an image is several of them, as patches or tokens are, rows of one image may lie
    together or apart, which nobody but the network's author knows: its parts would not be of as many images as said.

    Args:
        model: Built for this; its statistics move.
        images: Any of those that it will see.

    Raises:
        StudyError: If there is such a norm; it names the first.
    """
    images = images[:_FEW]
    paths = {id(norm): path for path, norm in norms(model).items()}
    wrong: dict[str, int] = {}

    def count(norm: nn.Module, given: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        rows = len(given[0] if given else named["input"])
        if rows != len(images):
            wrong.setdefault(paths[id(norm)], rows)

    hooks = [norm.register_forward_pre_hook(count, with_kwargs=True) for norm in norms(model).values()]
    tried(model, images)
    for hook in hooks:
        hook.remove()
    for path, rows in wrong.items():
        raise StudyError(
            f"the norm {path} is given {rows} rows for {len(images)} images, so parts of a batch cannot be told in "
            "images.",
            "give norms one row an image, as (N, C, length), or leave this claim out",
        )


def tried(model: nn.Module, images: Tensor) -> None:
    """Gives a model a few images in training mode, with torch's random numbers afterwards as they were.

    Args:
        model: Built for this; its statistics move.
        images: Any of those that it will see.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        model.train()(images[:_FEW])


def normalised_by(model: nn.Module, size: int, batch: int) -> nn.Module:
    """The model with batch norm over parts of ``size`` images of each batch; over the whole of it where they are equal.

    Its running statistics look back over as many images whatever the size is: they move once for each part, so a part
    weighs less the more there are. Otherwise those of small parts would also be the noisier ones.

    Args:
        model: As :func:`batchnorm.study.arms.derive` takes it; its norms see a row an image (:func:`check_rows`).
        size: Images a part.
        batch: Images an update.
    """
    if size == batch:
        return derive(model, "batch")
    model = derive(model, "ghost", ghost_size=size)
    for norm in norms(model).values():
        if isinstance(norm.momentum, float):
            norm.momentum = 1 - (1 - norm.momentum) ** (size / batch)
    return model


def renormalised_by(model: nn.Module, size: int, steps: int) -> nn.Module:
    """The model with batch renorm over parts of ``size`` images of each batch.

    The limits are the paper's, r at most 3 and d at most 5. They grow from plain batch norm's, from a twentieth of the
    run on, to the whole after a quarter (d) and two fifths (r) of it. The paper counts in updates of a longer run.

    Args:
        model: As :func:`batchnorm.study.arms.derive` takes it; its norms see a row an image (:func:`check_rows`).
        size: Images a part.
        steps: Updates of the run.
    """
    model = derive(model, "renorm", r_max=3.0, d_max=5.0, warmup=(steps // 20, 2 * steps // 5, steps // 4))
    wrapped = {id(norm): InParts(norm, size) for norm in norms(model).values()}
    if id(model) in wrapped:
        return wrapped[id(model)]
    for module in list(model.modules()):
        if isinstance(module, InParts):
            continue
        for name, child in list(module._modules.items()):
            if id(child) in wrapped:
                module._modules[name] = wrapped[id(child)]
    return model


class InParts(nn.Module):
    """Batch renorm over consecutive parts of a batch, in training; in evaluation mode the layer itself.

    All parts are corrected towards the running statistics as they were before the batch, which then move once, by the
    mean over the parts: what devices do that take a part each and share their running statistics. What a network reads
    of its norm, such as the weight, is the layer's.

    Args:
        norm: A ``BatchRenorm1d``, ``2d`` or ``3d``.
        size: Images a part; it divides the batch.
    """

    def __init__(self, norm: Any, size: int) -> None:
        super().__init__()
        self.norm = norm
        self.size = size

    def __getattr__(self, name: str) -> Any:
        """The module's own, or else the layer's."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("norm"), name)

    def forward(self, input: Tensor) -> Tensor:
        """Takes (N, C, …)."""
        norm, count = self.norm, len(input) // self.size
        if not self.training or count < 2:
            return norm(input)
        # A part's channel becomes a channel of its own: (N, C, …) to (size, parts·C, …).
        apart = input.unflatten(0, (count, self.size)).transpose(0, 1).flatten(1, 2)
        mean, var = norm.running_mean.repeat(count), norm.running_var.repeat(count)
        r_max, d_max = norm.limits()
        output = batch_renorm(
            apart,
            mean,
            var,
            None if norm.weight is None else norm.weight.repeat(count),
            None if norm.bias is None else norm.bias.repeat(count),
            True,
            norm.momentum,
            norm.eps,
            r_max=r_max,
            d_max=d_max,
            activation=norm.activation,
            num_batches_tracked=norm.num_batches_tracked,
        )
        with torch.no_grad():
            for kept, moved in ((norm.running_mean, mean), (norm.running_var, var)):
                kept.copy_(moved.unflatten(0, (count, -1)).mean(0))
        return output.unflatten(1, (count, -1)).transpose(0, 1).flatten(0, 1)
