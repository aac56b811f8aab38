"""What a loader may yield, and how a model is called with it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ..errors import ArgumentError

__all__ = ["Batches", "Forward", "device_of", "model_input", "moved", "samples_of"]

Forward: TypeAlias = Callable[[torch.nn.Module, Any], object]


class Batches:
    """The batches that statistics are taken over: one pass after the other, each ended at ``max_samples``.

    Args:
        given: Tensors, (input, target) pairs, dicts of keywords, or whatever ``forward`` takes; or one tensor or dict.
        max_samples: A pass ends with the batch that reaches it.
        forward: Called as ``forward(model, batch)`` in place of the model.
    """

    def __init__(
        self, given: Iterable[Any] | Tensor, max_samples: int | None = None, forward: Forward | None = None
    ) -> None:
        if isinstance(given, torch.utils.data.Dataset) and not isinstance(given, torch.utils.data.IterableDataset):
            raise ArgumentError("batches is a data set.", "give torch.utils.data.DataLoader(data, batch_size=…).")
        if max_samples is not None and max_samples < 1:
            raise ArgumentError(f"max_samples is {max_samples}.", "give a number of samples, or None for all.")
        if _is_a_pair(given):
            raise ArgumentError("batches is one (input, target) pair.", "give a list of pairs: batches=[(x, y)].")
        # What iterating a dict gives is the names of its entries.
        self._given: Iterable[Any] = [given] if isinstance(given, Tensor | Mapping) else given
        if not hasattr(type(self._given), "__iter__") and not hasattr(type(self._given), "__getitem__"):
            raise ArgumentError(
                f"batches is a {type(given).__name__}, which cannot be iterated.", "give a loader or a list."
            )
        self.max_samples = max_samples
        self._forward = forward

    @property
    def again(self) -> bool:
        """Whether a second pass would see the batches again."""
        return not isinstance(self._given, Iterator)

    @property
    def total(self) -> int | None:
        """How many batches a pass has, where that is known."""
        if self.max_samples is not None:
            return None
        try:
            return len(self._given)  # type: ignore[arg-type]
        except (TypeError, NotImplementedError):  # some data sets of streams raise the second
            return None

    def __iter__(self) -> Iterator[tuple[Any, int | None]]:
        """Each batch, and how many samples there were with it, where they can be counted."""
        samples: int | None = 0
        for batch in self._given:
            here = samples_of(batch)
            samples = None if samples is None or here is None else samples + here
            if samples is None and self.max_samples is not None:
                raise ArgumentError(
                    f"the samples of a {type(batch).__name__} cannot be counted: it has no tensor to count by.",
                    "leave max_samples out, and have batches end where it should.",
                )
            yield batch, samples
            if self.max_samples is not None and samples is not None and samples >= self.max_samples:
                return
        if self.max_samples is not None and samples is not None and 0 < samples < self.max_samples:
            raise ArgumentError(
                f"batches ended after {samples} of max_samples={self.max_samples} samples.",
                "give more data, or leave max_samples out.",
            )

    def run(self, model: torch.nn.Module, batch: Any) -> object:
        """Calls the model; gives its output."""
        if self._forward is not None:
            return self._forward(model, batch)
        input = moved(model_input(batch), model)
        if isinstance(input, Mapping):
            _fits(model, input)
            return model(**input)
        if isinstance(input, Tensor):
            return model(input)
        raise ArgumentError(
            f"a batch is a {type(batch).__name__}, and it is not clear how the model takes it.",
            "say so: forward=lambda model, batch: model(batch.x, batch.y).",
        )


def _is_a_pair(given: object) -> bool:
    """Whether this is one batch of samples with classes, as a loader gives it, and no list of two batches."""
    if not isinstance(given, list | tuple) or len(given) != 2 or not all(isinstance(each, Tensor) for each in given):
        return False
    input, target = given
    if input.dim() < 2 or not target.dim() or len(input) != len(target):
        return False
    return target.dim() == 1 or input.is_floating_point() != target.is_floating_point()


def _fits(model: torch.nn.Module, keywords: Mapping[str, Any]) -> None:
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(**keywords)
    except TypeError as error:
        raise ArgumentError(
            f"a batch is a dict of {', '.join(map(str, keywords))}, and the model's forward does not take it: {error}.",
            'say how: forward=lambda model, batch: model(batch["image"]).',
        ) from error


def model_input(batch: Any) -> Any:
    """What of a batch the model is called with: the first of a pair, else all of it."""
    return batch[0] if isinstance(batch, list | tuple) and batch else batch


def samples_of(batch: Any) -> int | None:
    """How many samples a batch has; None where it has no tensor to count by."""
    tensor = _first_tensor(batch)
    return None if tensor is None else tensor.shape[0]


def _first_tensor(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value if value.dim() else None
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return next((tensor for part in parts if (tensor := _first_tensor(part)) is not None), None)


def device_of(model: torch.nn.Module) -> torch.device:
    """That of the model's first parameter, or of its first buffer where it has none; the CPU of one without either."""
    first = next(chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if first is None else first.device


def moved(input: Any, model: torch.nn.Module) -> Any:
    """The tensors of it on the model's device (:func:`device_of`), where they are on the CPU."""
    # Loaders give what is in the CPU's memory, wherever the model is.
    device = device_of(model)
    if device.type == "cpu":
        return input

    def move(tensor: Tensor) -> Tensor:
        return tensor.to(device, non_blocking=True) if tensor.device.type == "cpu" else tensor

    return tree_map_only(Tensor, move, dict(input) if isinstance(input, Mapping) else input)
