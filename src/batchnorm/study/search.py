"""Searches over a grid of learning rates, and what a reader must know of them."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["ends"]


def ends(choices: Sequence[tuple[float, Sequence[float]]]) -> str:
    """Says how many chosen rates lie at an end of their grid, beyond which a better one may lie.

    Args:
        choices: Each chosen rate with the grid that it was chosen from.

    Example:
        >>> ends([(0.1, [0.1, 0.3, 1.0]), (0.3, [0.1, 0.3, 1.0])])
        'Of the chosen rates 0 are the highest and 1 the lowest of their grid, of 2: beyond it a better one may lie.'
        >>> ends([(0.3, [0.1, 0.3, 1.0])])
        'No chosen rate is an end of its grid.'
    """
    highest = sum(rate == max(grid) for rate, grid in choices)
    lowest = sum(rate == min(grid) for rate, grid in choices)
    if not highest + lowest:
        return "No chosen rate is an end of its grid."
    return (
        f"Of the chosen rates {highest} are the highest and {lowest} the lowest of their grid, of {len(choices)}: "
        "beyond it a better one may lie."
    )
