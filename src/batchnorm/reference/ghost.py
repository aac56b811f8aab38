"""Ghost batch normalization: the transform on parts of a batch, each with statistics of its own.

Hoffer, Hubara & Soudry, "Train longer, generalize better: closing the generalization gap in large batch
training of neural networks" (2017, arXiv 1705.08741): the statistics of a large batch are taken over small
"ghost" batches, as they would be in training with small batches. Evaluation is that of the plain layer.
"""

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .activation import Activation
from .arrays import Array, checked_mask, double, double_or_none
from .moments import Moments
from .running import update_running
from .transform import Gradients, Saved, backward, forward


class GhostSaved(NamedTuple):
    """What is kept for the backward pass: that of the plain transform, once a ghost batch."""

    groups: list[slice]
    saved: list[Saved]


def ghost_batches(batch_size: int, ghost_size: int, least: int = 1) -> Iterator[slice]:
    """Cut a batch into ⌈N / ghost_size⌉ consecutive ghost batches whose sizes differ by one at most.

    Cutting off `ghost_size` samples at a time would leave a remainder last, of one sample perhaps: its statistics would
    say next to nothing, and move the running ones like those of a whole ghost batch.

    Args:
        batch_size: N.
        ghost_size: The most samples that a ghost batch may have.
        least: The fewest, where N allows, before `ghost_size` has a say: 2 where a sample is one value a channel, and
            has no variance.

    Example:
        >>> [group.stop - group.start for group in ghost_batches(9, 4)]
        [3, 3, 3]
        >>> [group.stop - group.start for group in ghost_batches(5, 1, least=2)]
        [3, 2]
    """
    if ghost_size < 1:
        raise ValueError(f"ghost_size is at least 1, not {ghost_size}")
    parts = min(math.ceil(batch_size / ghost_size), max(1, batch_size // least))
    start = 0
    for part in range(parts):
        stop = start + math.ceil((batch_size - start) / (parts - part))
        yield slice(start, stop)
        start = stop


def ghost_forward(
    x: npt.ArrayLike,
    weight: npt.ArrayLike | None = None,
    bias: npt.ArrayLike | None = None,
    *,
    ghost_size: int,
    residual: npt.ArrayLike | None = None,
    mask: npt.ArrayLike | None = None,
    activation: str | Activation = "identity",
    eps: float = 1e-5,
) -> tuple[Array, GhostSaved]:
    """The transform of `forward` on each ghost batch by itself; γ and β are shared.

    Where a sample is one value a channel, a ghost batch has two samples or more (`ghost_batches`).

    Args:
        x: Input, (N, C, *spatial).
        weight: γ, (C,); None means 1.
        bias: β, (C,); None means 0.
        ghost_size: Samples in a ghost batch.
        residual: Added before the activation, of the shape of x.
        mask: Valid positions are True, (N, *spatial).
        activation: A name with its default parameters, or an `Activation`.
        eps: ε, inside the root.

    Example:
        >>> y, _ = ghost_forward([[0.0], [2.0], [10.0], [20.0]], ghost_size=2, eps=0.0)
        >>> y.ravel()
        array([-1.,  1., -1.,  1.])
    """
    values, added = double(x), double_or_none(residual)  # (N, C, *spatial)
    valid = checked_mask(mask, values)  # (N, *spatial)
    y = np.empty_like(values)  # (N, C, *spatial)
    least = 2 if math.prod(values.shape[2:]) == 1 else 1
    kept = GhostSaved(list(ghost_batches(len(values), ghost_size, least)), [])
    for group in kept.groups:
        y[group], saved = forward(  # (g, C, *spatial)
            values[group],  # (g, C, *spatial)
            weight,
            bias,
            residual=None if added is None else added[group],  # (g, C, *spatial)
            mask=None if valid is None else valid[group],  # (g, *spatial)
            activation=activation,
            eps=eps,
        )
        kept.saved.append(saved)
    return y, kept


def ghost_backward(dy: npt.ArrayLike, kept: GhostSaved) -> Gradients:
    """Backward of `ghost_forward`: no path leads from one ghost batch to another but through γ and β.

    Args:
        dy: ∂ℓ/∂y, (N, C, *spatial).
        kept: From `ghost_forward`.

    Example:
        >>> _, kept = ghost_forward([[0.0], [2.0], [1.0], [1.0]], weight=[1.0], ghost_size=2)
        >>> ghost_backward([[1.0], [1.0], [0.0], [0.0]], kept).x.ravel()
        array([0., 0., 0., 0.])
    """
    upstream = double(dy)  # (N, C, *spatial)
    if not kept.groups:
        raise ValueError("an empty batch has no ghost batches to go back through")
    parts = [backward(upstream[group], saved) for group, saved in zip(kept.groups, kept.saved, strict=True)]
    return Gradients(
        x=np.concatenate([part.x for part in parts]),  # (N, C, *spatial)
        weight=_summed(part.weight for part in parts),  # (C,)
        bias=_summed(part.bias for part in parts),  # (C,)
        residual=_joined([part.residual for part in parts]),  # (N, C, *spatial)
    )


def _summed(vectors: Iterable[Array | None]) -> Array | None:
    given = [vector for vector in vectors if vector is not None]
    return np.sum(given, axis=0) if given else None


def _joined(arrays: list[Array | None]) -> Array | None:
    given = [array for array in arrays if array is not None]
    return np.concatenate(given) if given else None


def ghost_update_running(
    running_mean: npt.ArrayLike, running_var: npt.ArrayLike, parts: Iterable[Moments], momentum: float = 0.1
) -> tuple[Array, Array]:
    """Move the running statistics once for each ghost batch, one after the other.

    Args:
        running_mean: Before the step, (C,).
        running_var: Before the step, (C,).
        parts: The statistics of the ghost batches, in order.
        momentum: The weight of one ghost batch.

    Example:
        >>> parts = [Moments(2, mean=np.array([mean]), m2=np.ones(1)) for mean in (4.0, 8.0)]
        >>> ghost_update_running([0.0], [1.0], parts, momentum=0.5)
        (array([5.]), array([1.]))
    """
    mean, var = double(running_mean), double(running_var)  # (C,), (C,)
    for part in parts:
        mean, var = update_running(mean, var, part, momentum)  # (C,), (C,)
    return mean, var
