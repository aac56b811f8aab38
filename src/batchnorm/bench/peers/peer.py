"""What every contender is: built for a case, run once for its results, then run again and again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from ..cases import Case
from ..inputs import Inputs
from ..kept import bytes_kept

__all__ = ["Around", "Contender", "Peer", "TorchContender", "Unavailable"]


Around: TypeAlias = Callable[[], AbstractContextManager[Any]]


class Unavailable(Exception):  # noqa: N818 - no fault: the reason why a peer is not measured
    """Why a peer cannot be measured here, or not on this case."""


class Contender(Protocol):
    """Someone at work on one case.

    Attributes:
        around: Makes the context that all of its steps run in.
    """

    around: Around

    def results(self, inputs: Inputs) -> dict[str, Tensor]:
        """One step from the buffers of ``inputs``; every result by its name.

        ``output``; in training ``grad_input``, ``grad_weight``, ``grad_bias``, ``grad_residual`` where there is one,
        ``running_mean`` and ``running_var``.
        """
        ...

    def load(self, pool: Sequence[Inputs]) -> None:
        """Takes the inputs to rotate through."""
        ...

    def step(self) -> None:
        """One step on the next inputs of the pool; results are made and let go. Evaluation is called under no_grad."""
        ...

    def kept(self, inputs: Inputs) -> int | None:
        """Bytes kept between forward and backward pass; None where that cannot be seen."""
        ...


class Peer(Protocol):
    """A way to do batch norm, by name."""

    name: str

    def build(self, case: Case, device: str = "cpu") -> Contender:
        """Makes the layer.

        Args:
            case: What is measured.
            device: Where the inputs will be: ``"cpu"`` or ``"cuda"``.

        Raises:
            Unavailable: With the reason, where it cannot take the case.
        """
        ...


class TorchContender:
    """A torch module that is called with the input, and the residual where there is one.

    Args:
        module: What is called.
        norm: The layer in it that holds gamma, beta and the running buffers.
        case: What is measured.
        around: Makes the context that all steps run in.
    """

    def __init__(
        self, module: Callable[..., Tensor], norm: torch.nn.Module, case: Case, around: Around = nullcontext
    ) -> None:
        self.around = around
        self.module, self.norm, self.training = module, norm, case.training
        self.pool: list[tuple[tuple[Tensor, ...], tuple[Tensor, ...], Tensor]] = []
        self.turn = 0

    def _prepared(self, inputs: Inputs) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Tensor]:
        """What the module is called with, what gradients are wanted of, and the gradient of the output."""
        tensors = (inputs.x,) if inputs.residual is None else (inputs.x, inputs.residual)
        given = tuple(tensor.detach().requires_grad_(self.training) for tensor in tensors)
        return given, (*given, *self.norm.parameters()), inputs.dy

    def results(self, inputs: Inputs) -> dict[str, Tensor]:
        """One step from the buffers of ``inputs``."""
        state = {name: getattr(inputs, name) for name in ("weight", "bias", "running_mean", "running_var")}
        self.norm.load_state_dict(state, strict=False)
        given, wanted, dy = self._prepared(inputs)
        with torch.set_grad_enabled(self.training):
            output = self.module(*given)
        found = {"output": output}
        if self.training:
            names = ["grad_input", "grad_residual"][: len(given)]
            gradients = torch.autograd.grad(output, wanted, dy)
            found |= dict(zip([*names, "grad_weight", "grad_bias"], gradients, strict=True))
            found |= {name: buffer.clone() for name, buffer in self.norm.named_buffers() if buffer.dim()}
        return {name: tensor.detach() for name, tensor in found.items()}

    def kept(self, inputs: Inputs) -> int | None:
        """Bytes kept between forward and backward pass, parameters and buffers left out."""
        if not self.training:
            return 0
        given, _, _ = self._prepared(inputs)
        return bytes_kept(lambda: self.module(*given), (*self.norm.parameters(), *self.norm.buffers()))

    def load(self, pool: Sequence[Inputs]) -> None:
        """Takes the inputs to rotate through."""
        self.pool = [self._prepared(inputs) for inputs in pool]

    def step(self) -> None:
        """Forward and, in training, backward; output and gradients are fresh, and let go at the end."""
        self.turn = (self.turn + 1) % len(self.pool)
        given, wanted, dy = self.pool[self.turn]
        output = self.module(*given)
        if self.training:
            torch.autograd.grad(output, wanted, dy)
