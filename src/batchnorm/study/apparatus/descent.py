"""Gradient descent on a quadratic with the best fixed step size: run, or calculated without being run.

On ½ (w − w*)ᵀ H (w − w*) the step size 2/(λ_max + λ_min) of H shrinks the distance to the minimum by the best factor
that a fixed one can promise, (κ − 1)/(κ + 1) a step, where κ = λ_max/λ_min is the condition number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["best_step", "curvatures_of", "descend", "detour", "steps_to", "turns"]

Array: TypeAlias = npt.NDArray[np.float64]


def curvatures_of(design: Array) -> tuple[Array, Array]:
    """Eigenvalues of the loss' second derivative XᵀX/n, largest first, and their directions as rows.

    From the singular values of X: squaring X first would lose the small ones of a narrow valley to rounding.
    """
    _, singular, directions = np.linalg.svd(design / math.sqrt(len(design)), full_matrices=False)
    return np.asarray(singular**2), np.asarray(directions)


def best_step(curvatures: Array) -> float:
    """2/(λ_max + λ_min), given the curvatures from the largest to the smallest."""
    return float(2 / (curvatures[0] + curvatures[-1]))


def steps_to(curvatures: Array, offsets: Array, share: float) -> float:
    """Steps of gradient descent with the best fixed step size until the excess loss is this share of its start.

    Along the direction of curvature λ the distance to the minimum is multiplied by 1 − ηλ with each step, so the
    excess loss ½ Σ λ c² (1 − ηλ)^2t needs no run: billions of steps are as cheap as ten. η = 2/(λ_max + λ_min).

    Args:
        curvatures: λ, largest first.
        offsets: c, the distance of the start from the minimum along each direction.
        share: Of the excess loss at the start.
    """
    energy = curvatures * offsets**2
    # log|1 − ηλ|, by log1p where ηλ is far below the rounding of 1.
    product = best_step(curvatures) * curvatures
    near = product < 0.5
    with np.errstate(divide="ignore"):
        rates = np.where(near, np.log1p(-np.where(near, product, 0.0)), np.log(np.abs(1 - product)))

    def excess(steps: float) -> float:
        return float((energy * np.exp(np.maximum(2 * steps * rates, -745.0))).sum() / energy.sum())

    high = 1.0
    while excess(high) > share and high < 1e300:
        high *= 2
    low = 0.0
    while high - low > max(0.5, 1e-12 * high):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > share else (low, middle)
    return float(math.ceil(high - 1e-9))


def descend(hessian: Array, offset: Array, share: float) -> list[Array]:
    """The way of gradient descent with the best fixed step size, as distances to the minimum."""
    step = best_step(np.asarray(np.linalg.eigvalsh(hessian)[::-1], dtype=np.float64))
    way = [offset]
    start = offset @ hessian @ offset
    while way[-1] @ hessian @ way[-1] > share * start and len(way) < 100_000:
        way.append(way[-1] - step * (hessian @ way[-1]))
    return way


def turns(way: Sequence[Array]) -> int:
    """How many steps go back on the one before: an angle above 90°."""
    moves = np.diff(np.array(way), axis=0)
    return int(((moves[1:] * moves[:-1]).sum(1) < 0).sum())


def detour(way: Sequence[Array]) -> float:
    """Length of the way over the straight distance between its ends."""
    moves = np.linalg.norm(np.diff(np.array(way), axis=0), axis=1)
    return float(moves.sum() / np.linalg.norm(way[-1] - way[0]))
