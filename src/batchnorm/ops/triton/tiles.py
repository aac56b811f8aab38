"""The one table of tile sizes, and how a batch is cut into programs.

Everything here depends on shapes and dtypes alone, never on the GPU: sums keep their shape, and results their bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .layout import Walk

__all__ = ["TILES", "Cut", "Merge", "Tile", "cut", "fits_whole", "merge", "power_of_two"]


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
        values: Of a tile, over all its lanes and their places. Where channels stay on the chip: at most so many.
        warps: Of 32 threads, a program. (ROCm's have 64.)
    """

    values: int
    warps: int


# By kernel and bytes a value. Beside each row what the compiler makes of it for compute capability 9.0, with relu, in
# both walks, alone and with a residual and bits: registers a thread, programs resident on one processor, instructions a
# value (benchmarks/gpu_compiled.csv). These are counts: no GPU has timed the table.
TILES: Mapping[str, Mapping[int, Tile]] = {
    "partial_moments": {
        2: Tile(8192, 4),  # 40 to 56 registers, 9 to 12 resident, 9.3 to 11.0 instructions
        4: Tile(4096, 4),  # 39 to 40, 12, 9.3 to 10.5
        8: Tile(2048, 4),  # 46 to 56, 9 to 10, 16.5 to 19.1
    },
    "normalize": {
        2: Tile(8192, 4),  # 32 to 56, 9 to 16, 7.0 to 17.2
        4: Tile(4096, 4),  # 32 to 40, 12 to 16, 9.1 to 21.9
        8: Tile(2048, 4),  # 32 to 40, 12 to 16, 20.4 to 38.8
    },
    "partial_sums": {
        2: Tile(8192, 4),  # 48 to 128, 4 to 10, 12.1 to 16.7
        4: Tile(4096, 4),  # 64 to 96, 5 to 8, 12.3 to 17.4
        8: Tile(2048, 4),  # 48 to 94, 5 to 10, 19.9 to 30.3
    },
    "input_gradient": {
        2: Tile(8192, 4),  # 32 to 72, 7 to 16, 10.4 to 18.6
        4: Tile(4096, 4),  # 32 to 48, 10 to 16, 15.0 to 17.5; with bits in rows it puts 8 bytes aside
        8: Tile(2048, 4),  # 40 to 56, 9 to 12, 26.9 to 35.5
    },
    # Twice as many values spill, or leave one program a processor, which loads, then sums, then stores.
    "whole_forward": {
        2: Tile(8192, 8),  # 97 to 111, 2, 28.1 to 52.0
        4: Tile(8192, 8),  # 127 to 128, 2, 32.2 to 46.8
        8: Tile(4096, 8),  # 117 to 128, 2, 60.7 to 73.4
    },
    "whole_backward": {
        2: Tile(8192, 8),  # 96 to 127, 2, 23.4 to 35.5
        4: Tile(8192, 8),  # 128, 2, 23.1 to 26.6
        8: Tile(4096, 8),  # 138 to 140, 1, 43.8 to 51.8
    },
}

# Positions of a lane: what is computed once a channel serves so many values, as many loads are on their way at once,
# and in rows they make a byte of bits, which has 8.
_PLACES = 8
# Neighbouring channels of a tile of rows: 128 bytes, a line of the cache.
_ROW_BYTES = 128
# … and the fewest, 32 bytes, a sector: what memory moves at the least.
_SECTOR_BYTES = 32
# Programs that sums are cut into before slices get longer: four for each processor of an H200 (132).
_PROGRAMS = 512
_FEWEST_PROGRAMS = 264  # two for each: where there are fewer, tiles are made smaller,
_FEWEST_VALUES = 2048  # … down to so many values
_MOST_STEPS = 4  # of a slice: what cancels in the sums of moments, and what sums lose, is bounded by its length
_MERGED = 4096  # numbers that a program merges at once
_MOST_MERGED = 512  # slices, of 8 channels (a sector of float32)
_CHANNELS_MERGED = (8, 128)  # at the least and at the most
_FEWEST_LANES = 16
_LOAD_BYTES = 16  # what a thread loads at once
_THREADS = 32


@dataclass(frozen=True)
class Cut:
    """How one kernel's programs share a walk.

    Attributes:
        block: Lanes of a tile.
        channels: Channels of a tile.
        places: Positions of a lane.
        steps: Tiles of a slice.
        slices: Slices of a channel.
        warps: Of a program.
    """

    block: int
    channels: int
    places: int
    steps: int
    slices: int
    warps: int

    def blocks(self, channels: int) -> int:
        """Blocks of channels."""
        return -(-channels // self.channels)

    @property
    def size(self) -> int:
        """Positions of a slice."""
        return self.block * self.places * self.steps


@dataclass(frozen=True)
class Merge:
    """How programs merge slices.

    Attributes:
        slices: At once; more are merged one lot after the other.
        channels: Of a program.
        warps: Of a program.
    """

    slices: int
    channels: int
    warps: int


def merge(slices: int) -> Merge:
    """How so many slices become one."""
    at_once = min(power_of_two(slices), _MOST_MERGED)
    fewest, most = _CHANNELS_MERGED
    channels = max(fewest, min(most, _MERGED // at_once))
    # As many values a thread as where a program has all that it may.
    return Merge(at_once, channels, max(1, 8 * at_once * channels // _MERGED))


def cut(kernel: str, walk: Walk, itemsize: int) -> Cut:
    """How ``kernel``, one that is not ``whole``, shares a walk over values of ``itemsize`` bytes.

    A kernel that sums gets slices of several tiles, where there are programs enough; the others get slices of one.
    """
    tile = TILES[kernel][itemsize]
    channels = min(_ROW_BYTES // itemsize, power_of_two(walk.channels)) if walk.rows else 1
    # Not more lanes than there are positions for, but whole bytes of bits.
    most = tile.values // (channels * _PLACES)
    lanes = max(min(most, power_of_two(-(-walk.positions // _PLACES))), _FEWEST_LANES)
    while lanes * channels * _PLACES > _FEWEST_VALUES and _programs(walk, lanes, channels) < _FEWEST_PROGRAMS:
        # A tile of half as many values: fewer lanes, or in rows, which have few, fewer channels.
        if lanes > _FEWEST_LANES:
            lanes //= 2
        else:
            channels //= 2
    tiles = -(-walk.positions // (lanes * _PLACES))
    steps = 1
    if kernel.startswith("partial"):
        enough = max(1, _PROGRAMS // -(-walk.channels // channels))
        steps = max(1, min(_MOST_STEPS, tiles // enough))
    warps = min(tile.warps, power_of_two(lanes * channels * itemsize) // (_LOAD_BYTES * _THREADS))
    return Cut(lanes, channels, _PLACES, steps, -(-tiles // steps), max(1, warps))


def _programs(walk: Walk, lanes: int, channels: int) -> int:
    return -(-walk.positions // (lanes * _PLACES)) * -(-walk.channels // channels)


def fits_whole(kernel: str, walk: Walk, itemsize: int) -> Cut | None:
    """How ``kernel``, a ``whole`` one, has all positions of its channels in one tile; None where they do not fit."""
    tile = TILES[kernel][itemsize]
    lanes = max(power_of_two(walk.positions), _FEWEST_LANES)
    fewest = min(_SECTOR_BYTES // itemsize, power_of_two(walk.channels)) if walk.rows else 1
    if lanes * fewest > tile.values:
        return None
    # No more warps than have four values a thread: what is small is quickest with few.
    return Cut(lanes, fewest, 1, 1, 1, max(1, min(tile.warps, lanes * fewest // (4 * _THREADS))))
