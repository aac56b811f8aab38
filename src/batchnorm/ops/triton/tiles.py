"""The one table of tile sizes, and how a batch is cut into programs.

Everything here depends on shapes and dtypes alone, never on the GPU: sums keep their shape, and results their bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .layout import Walk

__all__ = ["FINISH", "TILES", "Cut", "Tile", "cut", "fits_whole", "power_of_two"]


def power_of_two(number: int) -> int:
    """The next power of two.

    Example:
        >>> [power_of_two(number) for number in (1, 2, 3, 64, 65)]
        [1, 2, 4, 64, 128]
    """
    return 1 << (number - 1).bit_length()


@dataclass(frozen=True)
class Tile:
    """One row of the table.

    Attributes:
        values: Of a tile, over all its lanes. Those of a program whose channels stay on the chip: at most so many.
        warps: Of 32 threads, a program. (ROCm's have 64.)
    """

    values: int
    warps: int


# By kernel and bytes a value.
TILES: Mapping[str, Mapping[int, Tile]] = {
    "partial_moments": {2: Tile(4096, 8), 4: Tile(2048, 8), 8: Tile(1024, 8)},
    "normalize": {2: Tile(4096, 8), 4: Tile(2048, 8), 8: Tile(1024, 8)},
    "partial_sums": {2: Tile(2048, 8), 4: Tile(2048, 8), 8: Tile(1024, 8)},
    "input_gradient": {2: Tile(2048, 8), 4: Tile(2048, 8), 8: Tile(1024, 8)},
    "whole_forward": {2: Tile(16384, 16), 4: Tile(16384, 16), 8: Tile(8192, 16)},
    "whole_backward": {2: Tile(16384, 16), 4: Tile(16384, 16), 8: Tile(4096, 16)},
}

# Neighbouring channels of a tile of rows: 128 bytes, a line of the cache.
_ROW_BYTES = 128
# … and the fewest, 32 bytes, a sector: what memory moves at the least.
_SECTOR_BYTES = 32
# Programs that sums are cut into: four for each processor of an H200 (132).
_PROGRAMS = 512
_MOST_SLICES = 512  # what is merged by one program must fit into its registers
FINISH = Tile(8, 4)  # channels (a sector of float32) of a program that merges slices
_FEWEST_LANES = 16
_THREADS = 32


@dataclass(frozen=True)
class Cut:
    """How one kernel's programs share a walk.

    Attributes:
        block: Positions of a tile.
        channels: Channels of a tile.
        stride: Positions of a lane that lie one after the other: 8 where it makes a byte of bits, else 1.
        steps: Tiles of a slice.
        slices: Slices of a channel.
        warps: Of a program.
    """

    block: int
    channels: int
    stride: int
    steps: int
    slices: int
    warps: int

    def blocks(self, channels: int) -> int:
        """Blocks of channels."""
        return -(-channels // self.channels)

    @property
    def size(self) -> int:
        """Positions of a slice."""
        return self.block * self.stride * self.steps


def cut(kernel: str, walk: Walk, itemsize: int, bits: bool = False) -> Cut:
    """How ``kernel``, one that is not ``whole``, shares a walk over values of ``itemsize`` bytes.

    A kernel that sums gets slices of several tiles, so that a channel block has about as many programs as the chip
    takes; the others get slices of one.
    """
    tile = TILES[kernel][itemsize]
    stride = 8 if bits and walk.rows else 1
    channels = min(_ROW_BYTES // itemsize, power_of_two(walk.channels)) if walk.rows else 1
    # Not more lanes than there are positions, but whole bytes of bits.
    lanes = max(min(tile.values // channels, power_of_two(-(-walk.positions // stride))), _FEWEST_LANES)
    tiles = -(-walk.positions // (lanes * stride))
    steps = 1
    if kernel.startswith("partial"):
        blocks = -(-walk.channels // channels)
        steps = max(1, -(-tiles // max(1, min(_MOST_SLICES, _PROGRAMS // blocks))))
    return Cut(lanes, channels, stride, steps, -(-tiles // steps), _warps(tile, lanes * channels))


def fits_whole(kernel: str, walk: Walk, itemsize: int) -> Cut | None:
    """How ``kernel``, a ``whole`` one, has all positions of its channels in one tile; None where they do not fit."""
    tile = TILES[kernel][itemsize]
    lanes = max(power_of_two(walk.positions), _FEWEST_LANES)
    fewest = min(_SECTOR_BYTES // itemsize, power_of_two(walk.channels)) if walk.rows else 1
    if lanes * fewest > tile.values:
        return None
    return Cut(lanes, fewest, 1, 1, 1, _warps(tile, lanes * fewest))


def _warps(tile: Tile, values: int) -> int:
    """No more than have four values a thread: what is small is quickest with few."""
    return max(1, min(tile.warps, power_of_two(values) // (4 * _THREADS)))
