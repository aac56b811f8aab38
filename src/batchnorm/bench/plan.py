"""The order in which cases are measured where time may not do for all: some of every kind first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import TypeVar

from .cases import Case

__all__ = ["in_order", "spread"]

# What is asked for most on a GPU comes first.
_DTYPES = ("bfloat16", "float32", "float16")
_FORMATS = ("channels-last", "contiguous")
_MODES = ("norm+act", "norm+add+act", "norm", "evaluation", "norm+add")

_Any = TypeVar("_Any")


def in_order(cases: Iterable[Case]) -> list[list[Case]]:
    """The cases in rounds: each round has one of every kind (mode, format, dtype) that is not through yet.

    Within a kind they go from the largest to the smallest, then halve the gaps.
    """
    kinds: dict[tuple[int, int, int], list[Case]] = {}
    for case in cases:
        kind = _DTYPES.index(case.dtype), _FORMATS.index(case.format), _MODES.index(case.mode)
        kinds.setdefault(kind, []).append(case)
    columns = [spread(sorted(kinds[kind], key=lambda case: -case.bytes)) for kind in sorted(kinds)]
    return [[case for case in found if case is not None] for found in zip_longest(*columns)]


def spread(items: Sequence[_Any]) -> list[_Any]:
    """The same items, any beginning of which is spread over the whole: first, last, middle, the middles between, ….

    Example:
        >>> spread("abcdefg")
        ['a', 'g', 'd', 'b', 'e', 'c', 'f']
    """
    found = dict.fromkeys([0, len(items) - 1] if items else [])
    gaps = [(0, len(items) - 1)]
    while gaps:
        low, high = gaps.pop(0)
        if high - low > 1:
            middle = (low + high) // 2
            found[middle] = None
            gaps += [(low, middle), (middle, high)]
    return [items[place] for place in found]
