"""The least bytes that must move, and so the least time: batch norm does almost no arithmetic."""

from __future__ import annotations

from .cases import Case

__all__ = ["fits", "least_bytes"]


def fits(case: Case, tensors: int, cache: int, threads: int) -> bool:
    """Whether a value can stay in cache between the statistics and its normalisation.

    A channel is finished before the next is begun where channels lie apart (contiguous), so one channel must fit into
    one core's cache. Where the channels of a position lie side by side (channels-last, and (N, C)), every channel is
    finished last, so the whole tensor must fit into the caches of all cores. (Blocks of a few channels would need less,
    at strides that cost more than they save; they are not counted on.)

    Args:
        case: The case.
        tensors: How many tensors of its size are read twice: 1 forward, 2 backward (x and dy).
        cache: Bytes of one core's L2; of a GPU the whole L2.
        threads: Cores at work; of a GPU 1, since all multiprocessors share that L2.
    """
    side_by_side = case.format == "channels-last" or len(case.shape) == 2
    everything = tensors * case.bytes
    return everything <= cache * threads or (not side_by_side and everything / case.shape[1] <= cache)


def least_bytes(case: Case, cache: int, threads: int) -> int:
    """The least bytes that must cross from beyond the L2 caches, with T the bytes of the input.

    - Forward in training: read x for the statistics, read x again unless it is still in cache, write y: 2T or 3T.
    - Backward: read x and dy for two sums a channel, read both again unless they are still in cache, write dx: 3T or
      5T. Nothing less than x and dy twice will do: the sums must be complete before the first dx.
    - A residual is read once in the forward pass and its gradient written once in the backward pass: T each. Which
      side of its kink an element was on is one bit of it, and not counted.
    - Evaluation: read x, write y: 2T, and T for a residual.

    Vectors of C numbers are not counted.

    Args:
        case: The case.
        cache: As in :func:`fits`.
        threads: Likewise.

    Example:
        >>> large = Case((32, 64, 56, 56), "relu", format="channels-last")
        >>> least_bytes(large, 2 << 20, 2) / large.bytes
        8.0
        >>> least_bytes(Case((32, 64, 56, 56), "relu"), 2 << 20, 2) / large.bytes
        5.0
    """
    if not case.training:
        return (2 + case.residual) * case.bytes
    forward = 2 if fits(case, 1, cache, threads) else 3
    backward = 3 if fits(case, 2, cache, threads) else 5
    return (forward + backward + 2 * case.residual) * case.bytes
