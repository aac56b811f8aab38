"""The moments of all values that reached a layer: merged in float64, batch by batch, call by call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from ..ops.moments import merge_moments

__all__ = ["Pool", "moments_of"]

# Values that are converted to float64 at a time: 32 MiB.
_CHUNK = 2**22


class Pool:
    """Count, mean and biased variance of what was added so far, a channel each.

    Args:
        channels: C.
        device: Where it is kept.

    Attributes:
        calls: How many additions there were.
        count: () int64.
        mean: (C,) float64.
        var: (C,) float64.

    Example:
        >>> pool = Pool(1, torch.device("cpu"))
        >>> for part in (torch.tensor([[1.0], [2.0]]), torch.tensor([[6.0]])):
        ...     pool.add(*moments_of(part))
        >>> int(pool.count), pool.mean, pool.unbiased()
        (3, tensor([3.], dtype=torch.float64), tensor([7.0000], dtype=torch.float64))
    """

    def __init__(self, channels: int, device: torch.device) -> None:
        self.calls = 0
        device = precise(device)
        self.count = torch.zeros((), dtype=torch.int64, device=device)
        self.mean = torch.zeros(channels, dtype=torch.float64, device=device)
        self.var = torch.zeros(channels, dtype=torch.float64, device=device)

    def add(self, count: Tensor, mean: Tensor, var: Tensor, calls: int = 1) -> None:
        """Takes in the moments of another set, which may be empty."""
        # No in-place operation: a pool's tensors may have been made in inference mode.
        self.count, self.mean, self.var = merge_moments(self.count, self.mean, self.var, count, mean, var)
        self.calls += calls

    def unbiased(self) -> Tensor:
        """M2 / (n − 1), (C,); 0 for fewer than two values."""
        count = self.count.to(self.var.dtype)
        return self.var * (count / (count - 1).clamp(min=1))

    @staticmethod
    def length(channels: int) -> int:
        """Of :meth:`packed`."""
        return 2 + 2 * channels

    def packed(self) -> Tensor:
        """The pool as numbers."""
        return torch.cat(
            [self.mean.new_tensor([self.calls, int(self.count)], device="cpu"), self.mean.cpu(), self.var.cpu()]
        )

    @classmethod
    def merged(cls, rows: Iterable[Tensor], device: torch.device) -> Pool:
        """The pool of all that :meth:`packed` gave, in this order."""
        pool: Pool | None = None
        for row in rows:
            calls, count = int(row[0]), row[1].to(torch.int64)
            mean, var = row[2:].view(2, -1)
            pool = pool or cls(len(mean), device)
            where = pool.mean.device
            pool.add(count.to(where), mean.to(where), var.to(where), calls)
        assert pool is not None
        return pool


def precise(device: torch.device) -> torch.device:
    """Where float64 is computed of what is on a device."""
    return torch.device("cpu") if device.type == "mps" else device


def moments_of(input: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Count () int64, mean (C,) and biased variance (C,) in float64.

    Args:
        input: (N, C, *spatial).
        mask: (N, *spatial) or (N, 1, *spatial), True where valid.
    """
    input = input.detach()
    if mask is not None and mask.dim() == input.dim():
        mask = mask.squeeze(1)
    device = precise(input.device)
    pool = Pool(input.shape[1], device)
    for part, valid in _parts(input, mask):
        pool.add(
            *torch.ops.batchnorm.moments(part.to(device, torch.float64), None if valid is None else valid.to(device))
        )
    return pool.count, pool.mean, pool.var


def _parts(input: Tensor, mask: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Halves of halves, each along its longest dimension but for the channels'."""
    longest = max((size, -dimension) for dimension, size in enumerate(input.shape) if dimension != 1)
    size, dimension = longest[0], -longest[1]
    if input.numel() <= _CHUNK or size < 2:
        yield input, mask
        return
    for start, length in ((0, size // 2), (size // 2, size - size // 2)):
        valid = None if mask is None else mask.narrow(max(dimension - 1, 0), start, length)
        yield from _parts(input.narrow(dimension, start, length), valid)
