"""Running statistics: the averages over batches that stand in for the population at inference.

One convention throughout, torch's: running = (1 − momentum)·running + momentum·batch, with the unbiased
variance of the batch. The conversions say what the same number is called elsewhere.
"""

import numpy as np
import numpy.typing as npt

from .arrays import Array, double
from .moments import Moments


def update_running(
    running_mean: npt.ArrayLike,
    running_var: npt.ArrayLike,
    batch: Moments,
    momentum: float = 0.1,
) -> tuple[Array, Array]:
    """One step of the exponential moving average, as torch takes it.

    running_mean' = (1 − momentum)·running_mean + momentum·μ
    running_var'  = (1 − momentum)·running_var  + momentum·M2/(m − 1)

    A batch with fewer than two observations has no unbiased variance, and one with a mean or variance that is
    not finite would stay in the average for ever: neither moves anything.

    Args:
        running_mean: Before the step, (C,).
        running_var: Before the step, (C,).
        batch: The statistics of the batch.
        momentum: The weight of the batch.

    Returns:
        running_mean and running_var after the step, (C,) each.

    Example:
        >>> batch = Moments(2, mean=np.array([4.0]), m2=np.array([2.0]))
        >>> update_running([0.0], [1.0], batch, momentum=0.25)
        (array([1.]), array([1.25]))
    """
    old_mean, old_var = double(running_mean), double(running_var)  # (C,), (C,)
    if batch.count < 2 or not (np.isfinite(batch.mean).all() and np.isfinite(batch.m2).all()):
        return old_mean, old_var
    new_mean = (1 - momentum) * old_mean + momentum * batch.mean  # (C,)
    new_var = (1 - momentum) * old_var + momentum * batch.unbiased_variance  # (C,)
    return new_mean, new_var


def cumulative_momentum(num_batches_tracked: int) -> float:
    """Give the momentum that makes the moving average the plain average of all batches so far.

    It is 1/n at the n-th batch: torch's momentum=None, and the average over training batches that the paper's
    Algorithm 2 (line 10) takes.

    Args:
        num_batches_tracked: n, this batch included.

    Example:
        >>> mean, var = np.zeros(1), np.ones(1)
        >>> for n, value in enumerate((3.0, 5.0, 10.0), start=1):
        ...     batch = Moments(2, mean=np.array([value]), m2=np.array([value]))
        ...     mean, var = update_running(mean, var, batch, cumulative_momentum(n))
        >>> mean.round(12), var.round(12)
        (array([6.]), array([6.]))
    """
    if num_batches_tracked < 1:
        raise ValueError(f"the first batch is number 1, not {num_batches_tracked}")
    return 1.0 / num_batches_tracked


def momentum_from_keras(keras_momentum: float) -> float:
    """Keras weighs the old value by its momentum, torch the new: momentum = 1 − keras_momentum.

    Example:
        >>> round(momentum_from_keras(0.99), 12)
        0.01
    """
    return 1.0 - keras_momentum


def momentum_to_keras(momentum: float) -> float:
    """Give Keras' name for torch's momentum: keras_momentum = 1 − momentum.

    Example:
        >>> momentum_to_keras(0.1)
        0.9
    """
    return 1.0 - momentum


def keras_update(moving: npt.ArrayLike, batch: npt.ArrayLike, keras_momentum: float = 0.99) -> Array:
    """One step as Keras writes it: moving' = keras_momentum·moving + (1 − keras_momentum)·batch.

    Example:
        >>> keras_update([0.0], [4.0], keras_momentum=0.75)
        array([1.])
    """
    return keras_momentum * double(moving) + (1.0 - keras_momentum) * double(batch)  # (C,)


def batch_weights(num_batches: int, momentum: float = 0.1) -> tuple[float, Array]:
    """How much of the initial value and of each batch is in the moving average.

    After n steps: (1 − momentum)ⁿ of the initial value, and momentum·(1 − momentum)ⁿ⁻ᵏ of batch k = 1 … n.

    Args:
        num_batches: n.
        momentum: The weight of a batch when it comes.

    Returns:
        The weight of the initial value, and those of the batches, oldest first, (n,). They sum to 1.

    Example:
        >>> batch_weights(3, momentum=0.5)
        (0.125, array([0.125, 0.25 , 0.5  ]))
    """
    age = double(np.arange(num_batches - 1, -1, -1))  # (n,)  n − k
    of_batches = momentum * (1.0 - momentum) ** age  # (n,)
    return float((1.0 - momentum) ** num_batches), of_batches
