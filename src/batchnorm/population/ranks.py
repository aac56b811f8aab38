"""What processes tell each other: numbers of one length from each, or which of them failed."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import ArgumentError, BatchNormError
from .batches import device_of

__all__ = ["RankError", "Ranks"]

# Of a failed rank's message, this much reaches the others.
_TEXT = 512


class RankError(BatchNormError, RuntimeError):
    """Another process of the group failed, so nothing was done on this one either.

    Attributes:
        ranks: The ranks, within the group, that failed.
    """

    ranks: tuple[int, ...] = ()


class Ranks:
    """The processes that do something together; one alone where ``torch.distributed`` is not in use.

    Each calls :meth:`gather` equally often, with as many numbers, or :meth:`fail` in the place of one of them: that
    raises on all. So nobody waits for somebody who has left.

    Args:
        process_group: The group; None for the default one, where ``torch.distributed`` has been initialised.
        model: What this is about: a group without a CPU (nccl) exchanges from the model's GPU, which need not be the
            one that torch takes where none is named.

    Attributes:
        rank: This process' number in the group.
        size: How many there are.

    Example:
        >>> Ranks().gather(torch.tensor([1.0, 2.0]))
        tensor([[1., 2.]], dtype=torch.float64)
    """

    def __init__(self, process_group: dist.ProcessGroup | None = None, model: torch.nn.Module | None = None) -> None:
        in_use = dist.is_available() and dist.is_initialized()
        if process_group is not None and not in_use:
            raise ArgumentError(
                "process_group was given, but torch.distributed is not initialised.",
                "call torch.distributed.init_process_group first, or leave process_group out.",
            )
        self._group: Any = None
        self._near = None if model is None else device_of(model)
        self.rank, self.size = 0, 1
        if in_use:
            group = dist.group.WORLD if process_group is None else process_group
            rank = dist.get_rank(group)
            if rank < 0:
                raise ArgumentError("this process is not in process_group.", "call this on the group's ranks only.")
            self.rank, self.size = rank, dist.get_world_size(group)
            if self.size > 1:
                self._group = group

    def gather(self, numbers: Tensor) -> Tensor:
        """The numbers of all ranks, (ranks, n) float64 on the CPU, from this one's (n,).

        Raises:
            RankError: Another rank has failed.
        """
        return self._exchange(numbers, None)

    def fail(self, error: BaseException, length: int) -> None:
        """Takes this rank's part in a :meth:`gather` of ``length`` numbers, in which all learn that it failed.

        It returns: raise the error then.
        """
        if self._group is not None:
            self._exchange(torch.zeros(length, device="cpu"), error)

    def together(self, length: int, work: Callable[[], Tensor]) -> Tensor:
        """A :meth:`gather` of the ``length`` numbers that ``work`` gives; if it raises here, all learn of it."""
        try:
            numbers = work()
        except BaseException as error:
            self.fail(error, length)
            raise
        return self.gather(numbers)

    def agree(self, what: str, value: object) -> None:
        """Raises on every rank where ``repr(value)`` is not the same on all (a :meth:`gather` of one number)."""
        print_ = torch.tensor([float(zlib.crc32(repr(value).encode()))], dtype=torch.float64, device="cpu")
        prints = self.gather(print_)[:, 0]
        others = (prints != prints[0]).nonzero().flatten().tolist()
        if others:
            raise ArgumentError(
                f"{what} of rank {others[0]} is not that of rank 0.", "call this with the same model on every rank."
            )

    def _exchange(self, numbers: Tensor, error: BaseException | None) -> Tensor:
        numbers = numbers.detach().to("cpu", torch.float64)
        if self._group is None:
            return numbers.unsqueeze(0)
        gathered = self._all(torch.cat([numbers.new_tensor([float(error is not None)]), numbers]))
        failed = gathered[:, 0].nonzero().flatten().tolist()
        if failed:
            texts = self._all(_encoded("" if error is None else f"{type(error).__name__}: {error}"))
            if error is None:
                what = "; ".join(f"rank {rank} failed with {_decoded(texts[rank])}" for rank in failed)
                other = RankError(f"{what}.", "mend it there; this rank's model is as it was.")
                other.ranks = tuple(failed)
                raise other
        return gathered[:, 1:]

    def _all(self, numbers: Tensor) -> Tensor:
        sent = numbers.to(self._device())
        received = [torch.empty_like(sent) for _ in range(self.size)]
        dist.all_gather(received, sent, group=self._group)
        return torch.stack(received).cpu()

    def _device(self) -> torch.device:
        """From which the group exchanges numbers."""
        types = [device.type for device in self._group._device_types]
        if "cpu" in types:
            return torch.device("cpu")
        bound: torch.device | None = self._group.bound_device_id
        if bound is not None:
            return bound
        return self._near if self._near is not None and self._near.type in types else torch.device(types[0])


def _encoded(text: str) -> Tensor:
    codes = torch.zeros(_TEXT, dtype=torch.float64, device="cpu")
    data = text.encode()[:_TEXT]
    codes[: len(data)] = codes.new_tensor(list(data))
    return codes


def _decoded(codes: Tensor) -> str:
    return bytes(int(code) for code in codes.tolist() if code).decode(errors="replace")
