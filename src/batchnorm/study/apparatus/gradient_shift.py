"""Internal covariate shift by the gradient (Santurkar et al. 2018, Definition 2.1).

Layer by layer: the gradient of its weights W at the weights of now, G, and the gradient G′ of the same W on the same
batch after the layers before it have made their update, while W itself and the layers behind it have not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .at_weights import AtWeights, finite, norm

__all__ = ["GradientShift", "Moved", "shift_of", "stages"]


@dataclass(frozen=True)
class Moved:
    """How a layer's gradient differs after the layers before it have moved.

    Args:
        layer: The weight's name.
        absolute: ‖G − G′‖.
        relative: ‖G − G′‖/‖G‖.
        cosine: Of the angle between G and G′; 0 where one is 0 or not finite.
    """

    layer: str
    absolute: float
    relative: float
    cosine: float


def stages(model: nn.Module, images: Tensor) -> list[list[str]]:
    """Names of the parameters in the order in which the modules that hold them are first called, a list a module.

    Parameters of a module that is never called itself, such as one whose weights its parent reads, are left out; so
    are those that are not trained.

    Args:
        model: The network, which stays as it is.
        images: A few, for one pass through it.
    """
    called: list[nn.Module] = []
    handles = [
        module.register_forward_pre_hook(lambda module, _: called.append(module))
        for module in model.modules()
        if any(parameter is not None for parameter in module._parameters.values())
    ]
    try:
        kept = {name: buffer.clone() for name, buffer in model.named_buffers()}
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            functional_call(model, kept, (images,))
    finally:
        for handle in handles:
            handle.remove()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    order: list[list[str]] = []
    seen: set[str] = set()
    for module in called:
        # A weight that two modules share counts where it is used first.
        parameters = [parameter for parameter in module._parameters.values() if parameter is not None]
        own = [names[id(parameter)] for parameter in parameters if parameter.requires_grad]
        new = [name for name in own if name not in seen]
        seen.update(new)
        if new:
            order.append(new)
    return order


def shift_of(
    function: AtWeights, order: Sequence[Sequence[str]], old: Mapping[str, Tensor], new: Mapping[str, Tensor]
) -> list[Moved]:
    """The shift of each layer whose weights have two axes or more and that something with weights comes before.

    Args:
        function: The network on one batch.
        order: As :func:`stages` gives it.
        old: The weights before an update.
        new: The weights after it.
    """
    wanted = [(place, name) for place, names in enumerate(order) for name in names if old[name].dim() > 1]
    before = function.gradient(old, [name for _, name in wanted])[1]
    found = []
    for place, name in wanted:
        earlier = {each for names in order[:place] for each in names}
        if not earlier:
            continue
        mixed = {each: new[each] if each in earlier else old[each] for each in old}
        after = function.gradient(mixed, [name])[1][name].double()
        own = before[name].double()
        absolute, size = norm({name: own - after}), norm({name: own})
        sizes = size * float(after.norm())
        cosine = float((own * after).sum()) / sizes if sizes else 0.0
        found.append(
            Moved(
                name,
                finite(absolute),
                finite(absolute / size) if size else 0.0,
                cosine if math.isfinite(cosine) else 0.0,
            )
        )
    return found


@dataclass
class GradientShift:
    """Measures the shift every so many updates of a training: what it needs of an update it sees before the next one.

    Args:
        model: The network.
        every: Updates between two measurements; the first is of the first update.
        share: The earlier layers are moved only by so much of their update.
    """

    model: nn.Module
    every: int
    share: float = 1.0
    steps: list[int] = field(default_factory=list)
    shifts: list[list[Moved]] = field(default_factory=list)
    _open: tuple[AtWeights, dict[str, Tensor]] | None = None
    _order: list[list[str]] = field(default_factory=list)

    def before(self, step: int, images: Tensor, labels: Tensor) -> None:
        """What :func:`batchnorm.study.training.train` calls before each update."""
        if self._open is not None:
            function, old = self._open
            new = {name: torch.lerp(old[name], weight, self.share) for name, weight in function.weights().items()}
            self.shifts.append(shift_of(function, self._order, old, new))
            self.steps.append(step - 1)
            self._open = None
        if (step - 1) % self.every == 0:
            if not self._order:
                self._order = stages(self.model, images[:2])
            function = AtWeights(self.model, images, labels, seed=step)
            self._open = (function, function.weights())
