"""``recalibrate``: the running statistics of all batch norms, taken anew over a set of data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .batches import Forward
from .engine import Order, retake
from .pool import Pool
from .progress import Progress
from .result import Recalibration
from .target import Target

__all__ = ["recalibrate"]


def recalibrate(
    model: torch.nn.Module,
    batches: Iterable[Any] | Tensor,
    *,
    max_samples: int | None = None,
    forward: Forward | None = None,
    process_group: dist.ProcessGroup | None = None,
    order: Order = "one-pass",
    progress: Progress = None,
) -> Recalibration:
    r"""Sets the running statistics of a model's batch norms to those of the data, in place.

    .. math:: \mathrm{running\_mean} = \frac{1}{n} \sum_i x_i, \qquad
              \mathrm{running\_var} = \frac{1}{n - 1} \sum_i (x_i - \mathrm{running\_mean})^2

    over all n values that reach a channel of the layer, in all batches, calls and ranks: merged in float64 by the
    formula of Chan, Golub & LeVeque (1979), so that each value counts the same whatever batch it came in. What a mask
    excludes does not count. ``num_batches_tracked`` becomes the number of calls.

    The model runs in evaluation mode (dropout is off) and without gradients, so this is what its layers see when it is
    used. A layer sees what the new statistics before it give. How, is the ``order``:

    - ``"one-pass"``: one pass over the batches. A layer normalises a batch of at least 32 samples (dimension 0 of its
      own input) by the moments of that batch, and a smaller one by those of all that has reached it so far, for its own
      would be too few. The first norm's statistics are exact; those after it are of inputs that were normalised a
      little otherwise. By how much is measured in docs/recalibrate.md: it shrinks with the size of the batches from
      32 on, and below that with the number of samples. Give the data shuffled.
    - ``"layer-by-layer"``: one pass for each norm, from the first on, that stops there. All are exact, and do not
      depend on how the data is cut into batches or ordered. A layer that is called more than once in a forward pass
      normalises each of the calls by its own statistics until the last is known, and by those of all calls together
      from there on.

    Layers that do not track statistics or are frozen (:func:`batchnorm.freeze`, ``Frozen*`` layers, momentum 0, those
    in evaluation mode while another module with parameters or buffers trains) keep theirs. So do layers that no batch
    reaches, with a warning. Whatever is raised, by the loader, the model, ``forward``, ``progress`` or Ctrl-C, leaves
    the model as it was: statistics, modes and hooks.

    Args:
        model: The model, or what ``DistributedDataParallel``, ``DataParallel`` or ``torch.compile`` made of it: then
            the module inside runs.
        batches: Yields tensors, (input, target) pairs, of which the first counts, or dicts of keywords; or one tensor.
            Tensors on the CPU are moved to the device of the model's first parameter (or buffer).
        max_samples: A pass ends with the batch that reaches this many samples (the size of dimension 0; on each rank).
            The batch is not cut. Layer by layer each pass ends there: a loader that shuffles gives each other samples.
        forward: Called as ``forward(model, batch)``, where the model takes its batches otherwise, for instance under
            autocast. It gets them as the loader gives them, and should call the ``model`` that it is given: one in
            ``DistributedDataParallel`` waits for other ranks.
        process_group: The ranks that do this together, each with batches of its own, also unequally many or none. By
            default all, where ``torch.distributed`` is initialised: then all ranks call this.
        order: See above. ``"layer-by-layer"`` takes batches that can be iterated again.
        progress: True for a line on stderr (of rank 0), or a function of (batches done, batches in a pass or None,
            pass, passes); layer by layer the number of passes is known after the first batch.

    Returns:
        What has moved, and how far; ``print`` it for a table.

    Raises:
        ArgumentError: No batch, fewer samples than ``max_samples``, no layer to do this to, a scripted model, a dict
            whose keys the model does not take; layer by layer also batches that cannot be iterated again, and such as
            call the layers in another order.
        NonfiniteError: A NaN or an infinity reached a layer, which is named with the batch.
        RankError: Another rank failed, which is named; that rank has its own error.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(1), torch.nn.Dropout(0.5), torch.nn.BatchNorm1d(1))
        >>> print(recalibrate(model, [torch.tensor([[1.0], [3.0]]), torch.tensor([[8.0]])], order="layer-by-layer"))
        layer  class        values  mean moved by  variance changed by
        0      BatchNorm1d  3       4 std          ×13 to ×13
        2      BatchNorm1d  3       ... std        ×1 to ×1
        2 batches of 3 samples, layer-by-layer, 2 passes
        >>> model[0].running_mean, model[0].running_var, model.training
        (tensor([4.]), tensor([13.]), True)
    """
    return retake(
        model,
        batches,
        _pooled,
        max_samples=max_samples,
        forward=forward,
        process_group=process_group,
        order=order,
        progress=progress,
        tool="recalibrate",
    )


def _pooled(target: Target, pool: Pool, samples: int | None) -> tuple[Tensor, Tensor]:
    return pool.mean, pool.unbiased()
