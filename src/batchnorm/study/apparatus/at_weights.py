"""Loss and gradient of a network in training at weights other than its own, which stay as they are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

__all__ = ["MOST", "AtWeights", "finite", "norm"]

#: What a number that is not finite counts as, and the largest that another may be: results hold no NaN, and logarithms
#: of what was measured stay comparable.
MOST = 1e30


class AtWeights:
    """A network on one batch, as a function of its weights: the same function at each call.

    It is in the mode in which the model is, for batch norm with the statistics of this very batch. Running statistics
    stay as they were, and what dropout drops is the same at each call.

    Args:
        model: The network.
        images: The batch.
        labels: Its labels.
        seed: Decides what the network itself draws.
    """

    def __init__(self, model: nn.Module, images: Tensor, labels: Tensor, *, seed: int) -> None:
        self._model, self._batch, self._seed = model, (images, labels), seed

    def weights(self) -> dict[str, Tensor]:
        """A copy of the model's weights of now, by name, each once; those that are not trained are left out."""
        return {
            name: weight.detach().clone() for name, weight in self._model.named_parameters() if weight.requires_grad
        }

    def gradient(
        self, weights: Mapping[str, Tensor], wanted: Sequence[str] | None = None
    ) -> tuple[float, dict[str, Tensor]]:
        """The mean cross-entropy at these weights, and its gradient by the wanted ones; by all if None.

        A weight that the loss does not depend on has the gradient 0. Weights that are not given are the model's own.
        """
        names = list(weights) if wanted is None else list(wanted)
        images, labels = self._batch
        leaves = {name: weight.detach().requires_grad_(name in names) for name, weight in weights.items()}
        buffers = {name: buffer.clone() for name, buffer in self._model.named_buffers()}
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(self._seed)
            loss = nn.functional.cross_entropy(functional_call(self._model, (leaves, buffers), (images,)), labels)
            asked = [leaves[name] for name in names]
            found = torch.autograd.grad(loss, asked, allow_unused=True, materialize_grads=True)
        return loss.item(), dict(zip(names, found, strict=True))


def norm(tensors: Mapping[str, Tensor]) -> float:
    """Euclidean norm of all of them together, in float64."""
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors.values()))


def finite(value: float) -> float:
    """The value, or :data:`MOST` where it is not a number or larger."""
    return min(value, MOST) if math.isfinite(value) else MOST
