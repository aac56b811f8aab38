"""What is around a model when it is run: random numbers, and the modes of autograd."""

from __future__ import annotations

from typing import Any

import torch

from ..surgery.randomness import remembered

__all__ = ["Surroundings"]


class Surroundings:
    """Remembers torch's, Python's and NumPy's generators, those of a loader, and whether gradients are wanted.

    Args:
        batches: What is iterated: of a ``DataLoader`` and its samplers, their generators.

    Example:
        >>> surroundings = Surroundings()
        >>> first = torch.rand(1)
        >>> surroundings.restore()
        >>> bool(torch.rand(1) == first)
        True
    """

    def __init__(self, batches: object = None) -> None:
        self._restore_random_numbers = remembered()
        self._gradients = torch.is_grad_enabled()
        self._generators = [(each, each.get_state()) for each in _generators(batches)]

    def restore(self) -> None:
        """All as it was; also twice."""
        self._restore_random_numbers()
        for generator, state in self._generators:
            generator.set_state(state)
        torch.set_grad_enabled(self._gradients)
        # It may hold copies, in another precision, of parameters that have moved and are back.
        torch.clear_autocast_cache()


def _generators(batches: object) -> list[torch.Generator]:
    """Of a loader, of its sampler, of the sampler of its batches, and of what that draws from."""
    if not isinstance(batches, torch.utils.data.DataLoader):
        return []
    samplers: list[Any] = [batches, batches.sampler, batches.batch_sampler]
    samplers.append(getattr(batches.batch_sampler, "sampler", None))
    found = [getattr(each, "generator", None) for each in samplers]
    return list({id(each): each for each in found if isinstance(each, torch.Generator)}.values())
