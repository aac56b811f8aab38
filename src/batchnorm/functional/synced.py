"""``sync_batch_norm``: batch normalization over the samples of all ranks."""

from __future__ import annotations

from collections.abc import Callable

import torch.distributed as dist
from torch import Tensor

from ..activation import ActivationLike, as_activation
from ..ops.synced import batch_norm_synced
from ..ops.synced_group import Group, ranks_to_synchronize
from .checks import Nonfinite, check_values, checked_tensors
from .plain import batch_norm

__all__ = ["sync_batch_norm"]


def sync_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | Tensor | None = 0.1,
    eps: float = 1e-5,
    *,
    activation: ActivationLike = None,
    residual: Tensor | None = None,
    mask: Tensor | None = None,
    nonfinite: Nonfinite = "skip",
    num_batches_tracked: Tensor | None = None,
    process_group: dist.ProcessGroup | Group | None = None,
    counted: Callable[[Tensor], None] | None = None,
) -> Tensor:
    r"""Batch normalization by the moments of all ranks of a process group; :func:`batch_norm` where there is one.

    With rank r's own count :math:`n_r`, mean :math:`\mu_r` and sum of squared distances :math:`M_r`, all gathered in
    one collective (Chan, Golub & LeVeque 1979, merged for all ranks at once):

    .. math::

        n = \sum_r n_r, \quad \mu = \frac{1}{n}\sum_r n_r\mu_r, \quad
        \sigma^2 = \frac{1}{n}\Big(\sum_r M_r + \sum_r n_r(\mu_r - \mu)^2\Big), \quad
        z = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} \cdot \gamma + \beta + \mathrm{residual}

    and backward, :math:`\Sigma` taken over the samples of all ranks by the second collective:

    .. math::

        \frac{\partial L}{\partial x} = \frac{\gamma}{\sqrt{\sigma^2 + \epsilon}}
        \Big(dz - \frac{\Sigma dz}{n} - \hat{x}\,\frac{\Sigma dz\,\hat{x}}{n}\Big)

    with L the sum of the ranks' losses. Gradients of weight and bias are those of the rank's own samples, as torch's
    SyncBatchNorm gives them, for DDP or FSDP to average.

    Every rank of the group has to make the call, and the backward pass through it: one without samples gives an input
    with N = 0. Whether the input requires a gradient has to be the same on all of them.

    Args:
        input: (N, C, \*spatial), the rank's own part of the batch; N and the spatial sizes may differ between ranks,
            and N may be 0.
        running_mean: (C,), moved by the statistics of all ranks, and so alike on all of them; or None.
        running_var: (C,) or None, moved by the unbiased variance, with n of all ranks.
        weight: gamma, (C,), or None for 1.
        bias: beta, (C,), or None for 0.
        training: Whether to normalise by the batch. Evaluation needs nobody, and is :func:`batch_norm`.
        momentum: As for :func:`batch_norm`.
        eps: Likewise.
        activation: Likewise.
        residual: Likewise.
        mask: Likewise; a rank may have one and another none.
        nonfinite: Likewise. A value that is not finite on any rank keeps the batch out of the buffers of all.
        num_batches_tracked: Likewise.
        process_group: Over which to synchronise; None is the default group, where one is initialised.
        counted: Called with the count of values a channel on all ranks, () int64, where the ranks are more than one.

    Returns:
        (N, C, \*spatial) of the input's dtype.

    Raises:
        ShapeError: As :func:`batch_norm`, by what this rank alone can see.
        TooFewValuesError: One value a channel, with one rank. With more, the count is known to the device alone: the
            output is ``activation(bias + residual)`` and nothing moves.
        DtypeError: As :func:`batch_norm`.
        DeviceError: As :func:`batch_norm`.
        ArgumentError: As :func:`batch_norm`; a group that this rank is not in; with more than one rank also higher
            derivatives, forward mode and ``torch.func``, which would need the samples of other ranks.
        RuntimeError: A rank that is gone, or slower than the group's timeout; torch's own error.

    Example:
        >>> import torch
        >>> x = torch.tensor([[1.0, 10.0], [3.0, 30.0]])
        >>> sync_batch_norm(x, None, None, training=True)  # no process group: the plain norm
        tensor([[-1.0000, -1.0000],
                [ 1.0000,  1.0000]])
    """
    ranks = ranks_to_synchronize(process_group) if training else None
    if ranks is None:
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
    activation = as_activation(activation)
    check_values(input, running_mean, running_var, True, momentum, eps, nonfinite, num_batches_tracked)
    # As for evaluation: one value is not too few, since other ranks have some as well.
    residual, mask = checked_tensors(input, running_mean, running_var, weight, bias, False, residual, mask)
    output, count = batch_norm_synced(
        *ranks,
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
        activation,
    )
    if counted is not None:
        counted(count)
    return output
