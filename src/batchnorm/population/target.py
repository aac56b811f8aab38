"""A layer whose statistics are being taken anew: its buffers, what they held, and what it is called with."""

from __future__ import annotations

import inspect
from contextlib import nullcontext, suppress
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from ..errors import ArgumentError
from ..nn._base import Norm
from .layers import named
from .pool import Pool
from .result import Moved

__all__ = ["Target"]


class Target:
    """One tracked norm.

    Args:
        path: In the model.
        layer: The norm.

    Attributes:
        mean: Its running mean, the tensor itself; ``var`` and ``seen`` likewise.
        source: Mean and variance as they were, in float64.
        name: Path and class, for messages.
    """

    def __init__(self, path: str, layer: _NormBase) -> None:
        self.path, self.layer, self.name = path, layer, named(path, layer)
        mean, var = layer.running_mean, layer.running_var
        assert mean is not None
        assert var is not None
        self.mean, self.var, self.seen = mean, var, layer.num_batches_tracked
        self._kept = [None if tensor is None else tensor.detach().clone() for tensor in (mean, var, self.seen)]
        empty = self.pool()
        self.source = (mean.detach().to(empty.mean, copy=True), var.detach().to(empty.var, copy=True))
        self._parameters = list(inspect.signature(type(layer).forward).parameters)[1:]

    def pool(self) -> Pool:
        """An empty one for this layer."""
        return Pool(self.mean.numel(), self.mean.device)

    def called_with(self, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[Tensor, Tensor | None] | None:
        """Input and mask of a call; None where it has no such input, about which the layer itself has words."""
        given = {**dict(zip(self._parameters, arguments, strict=False)), **keywords}
        if arguments:
            input = arguments[0]
        else:
            names = ("input", *self._parameters[:1], *keywords)
            input = next((keywords[name] for name in names if name in keywords), None)
        if not isinstance(input, Tensor):
            return None
        if input.dim() < 2 or input.shape[1] != self.mean.numel() or not input.is_floating_point():
            return None
        # Other classes may mean something else by the word.
        mask = given.get("mask") if isinstance(self.layer, Norm) else None
        return input, mask

    def write(self, mean: Tensor, var: Tensor) -> None:
        """Into the running buffers, in place."""
        # Asked for first: a call that still waits for what follows is then computed with what it was called by.
        if self.layer.running_mean is not self.mean:
            raise ArgumentError(
                f"{self.name} has other running statistics than it had (of another domain?).",
                "choose the domain around this call, not in the model: with batchnorm.domain(model, name).",
            )
        _write(self.mean, mean)
        _write(self.var, var)

    def count(self, batches: int) -> None:
        """Sets the number of batches tracked."""
        if self.seen is not None and not getattr(self.layer, "counts_training", False):
            _write(self.seen, torch.tensor(batches, device="cpu"))

    def restore(self) -> None:
        """Everything as it was."""
        with suppress(RuntimeError):
            _ = self.layer.running_mean  # a call that an exception left waiting must not meet other buffers than its
        for tensor, kept in zip((self.mean, self.var, self.seen), self._kept, strict=True):
            if tensor is not None and kept is not None:
                _write(tensor, kept)

    def finite(self) -> bool:
        """Whether what was written is, in the buffers' dtype."""
        return bool(torch.isfinite(self.mean).all() & torch.isfinite(self.var).all())

    def moved(self, values: int) -> Moved:
        """The buffers beside what they held."""
        old_mean, old_var = self.source
        new_mean, new_var = self.mean.to(old_mean), self.var.to(old_var)
        eps = float(getattr(self.layer, "eps", 0.0))
        shift = (new_mean - old_mean).abs() / (old_var + eps).sqrt()
        ratio = (new_var + eps) / (old_var + eps)
        low, high = (float(ratio.min()), float(ratio.max())) if len(ratio) else (1.0, 1.0)
        kind = type(self.layer).__name__
        return Moved(self.path, kind, values, float(shift.max()) if len(shift) else 0.0, (low, high))


def _write(buffer: Tensor, value: Tensor) -> None:
    # A tensor of inference mode can be written there only; any other must not become one.
    with torch.inference_mode() if buffer.is_inference() else nullcontext():
        buffer.copy_(value)
