"""``ghost_batch_norm``: training by the statistics of small parts of a batch."""

from __future__ import annotations

from torch import Tensor

from ..activation import ActivationLike, as_activation
from ..errors import ArgumentError
from ..ops import direct_kernels
from ..ops.ghost import batch_norm_in_parts, part_sizes
from .checks import Nonfinite, check_values, checked_tensors
from .plain import batch_norm

__all__ = ["check_ghost_size", "ghost_batch_norm"]


def check_ghost_size(ghost_size: int) -> None:
    """Refuse what is no number of samples."""
    if isinstance(ghost_size, bool) or not isinstance(ghost_size, int) or ghost_size < 1:
        raise ArgumentError(
            f"ghost_size={ghost_size!r} is no number of samples.", "give 1 or more; 32 is a batch as small ones are."
        )


def ghost_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | Tensor | None = 0.1,
    eps: float = 1e-5,
    *,
    ghost_size: int = 32,
    activation: ActivationLike = None,
    residual: Tensor | None = None,
    mask: Tensor | None = None,
    nonfinite: Nonfinite = "skip",
    num_batches_tracked: Tensor | None = None,
) -> Tensor:
    r"""Ghost batch normalization: in training, the transform of :func:`batch_norm` on each part of the batch by itself.

    .. math::

        z_i = \frac{x_i - \mathrm{E}_{p(i)}[x]}{\sqrt{\mathrm{Var}_{p(i)}[x] + \epsilon}} \cdot \gamma + \beta
        + \mathrm{residual}_i, \qquad y = \mathrm{activation}(z)

    where the moments are those of the part p(i) that sample i is in (Hoffer, Hubara & Soudry 2017, arXiv 1705.08741:
    a large batch is normalised as small ones are). Evaluation is :func:`batch_norm`'s, and so is training on a batch
    of at most ``ghost_size`` samples.

    *Parts* are consecutive and nearly equal: ⌈N / ghost_size⌉, whose sizes differ by one at most. A remainder of a few
    samples, which cutting off ``ghost_size`` at a time would leave, would have statistics of its own that say little.
    Where a sample is one value a channel, as in (N, C) input, a part has at least two (then parts are fewer, N // 2):
    the variance of one is 0.

    *Running statistics* move once for each part, one after the other: each part is a batch, for ``momentum``, for
    ``num_batches_tracked`` (which counts parts) and for ``nonfinite`` (a part that is not finite moves nothing, the
    others do). With ``momentum=None`` they are the average over all parts so far, each counted alike. To move as far in
    a step as with one whole batch and momentum m, p parts take ``1 − (1 − m) ** (1 / p)``.

    Args:
        input: (N, C, \*spatial) of any strides; float32, float64, bfloat16 or float16.
        running_mean: (C,) or None for no tracking; required in evaluation.
        running_var: (C,) or None, together with ``running_mean``.
        weight: gamma, (C,), or None for 1; shared by all parts.
        bias: beta, (C,), or None for 0; shared by all parts.
        training: Whether to normalise by the parts' own moments.
        momentum: The weight of one part in the running buffers: a number, or a 0-d tensor on the input's device;
            ``None`` for the cumulative average.
        eps: Added to the variance, inside the root.
        ghost_size: The most samples that a part may have.
        activation: As for :func:`batch_norm`.
        residual: Added before the activation; the input's shape, dtype and device.
        mask: Bool, (N, \*spatial) or (N, 1, \*spatial), True where a position is valid. A part with one valid value a
            channel has variance 0; with none, nothing is valid; neither moves the running buffers.
        nonfinite: ``"skip"`` or ``"propagate"``, as for :func:`batch_norm`.
        num_batches_tracked: 0-d int64, counted up in place with every part that enters the running buffers.

    Returns:
        (N, C, \*spatial) of the input's dtype, with the strides of ``torch.empty_like(input)``.

    Raises:
        ArgumentError: ``ghost_size`` is below 1; and what :func:`batch_norm` raises, as all of its errors.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0], [2.0], [10.0], [30.0]])
        >>> ghost_batch_norm(x, None, None, training=True, ghost_size=2).round(decimals=3).flatten()
        tensor([-1.,  1., -1.,  1.])
        >>> mean, var, seen = torch.zeros(1), torch.ones(1), torch.tensor(0)
        >>> _ = ghost_batch_norm(
        ...     x, mean, var, training=True, momentum=None, ghost_size=2, num_batches_tracked=seen
        ... )
        >>> mean, var, seen
        (tensor([10.5000]), tensor([101.]), tensor(2))
    """
    check_ghost_size(ghost_size)
    check_values(input, running_mean, running_var, training, momentum, eps, nonfinite, num_batches_tracked)
    sizes = part_sizes(input, ghost_size) if training else []
    if len(sizes) < 2:
        return batch_norm(
            input,
            running_mean,
            running_var,
            weight,
            bias,
            training,
            momentum,
            eps,
            activation=activation,
            residual=residual,
            mask=mask,
            nonfinite=nonfinite,
            num_batches_tracked=num_batches_tracked,
        )
    residual, mask = checked_tensors(input, running_mean, running_var, weight, bias, training, residual, mask)
    return batch_norm_in_parts(
        direct_kernels(input, mask, training),
        sizes,
        input,
        weight,
        bias,
        residual,
        mask,
        running_mean,
        running_var,
        num_batches_tracked,
        momentum,
        nonfinite == "skip",
        eps,
        as_activation(activation),
    )
