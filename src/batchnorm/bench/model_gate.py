"""Correctness gates speed, of a whole model too: its contenders' results beside those of the model as given."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ..surgery.proof import Results, Standard, results
from .gate import Verdict
from .step import Step

__all__ = ["Gate"]

# Where float64 tells nothing: more than roundings, less than another formula.
_BESIDE_GIVEN = 0.06


class Gate:
    """What a training step must give: loss, output, gradients and buffers, near those of the model as given.

    Args:
        given: The step as it came, on the inputs that are compared on. It does not move.
    """

    def __init__(self, given: Step) -> None:
        assert isinstance(given.module, torch.nn.Module)
        self.buffers = {name: buffer.clone() for name, buffer in given.module.named_buffers()}
        self.standard = Standard.of(
            given.module,
            given.inputs,
            gradients=True,
            run=lambda module, inputs: _seen(replace(given, module=module, inputs=inputs)),
        )

    def results(self, step: Step) -> Results:
        """What another step gives from the same buffers, on inputs of its own; it moves."""
        # torch.compile puts a name before each name.
        module: Any = getattr(step.module, "_orig_mod", step.module)
        with torch.no_grad():
            for name, buffer in module.named_buffers():
                buffer.copy_(self.buffers[name])
        return results(module, step.inputs, gradients=True, run=lambda _, inputs: _seen(replace(step, inputs=inputs)))

    def judge(self, found: Results, double_error: float = 0.0) -> Verdict:
        """Whether that passes, as :class:`batchnorm.surgery.proof.Standard` says.

        Args:
            found: What it gave.
            double_error: How far roundings alone brought two forms of this model apart in float64.
        """
        standard = self.standard
        more = standard.grown(double_error) + (0.0 if standard.known else _BESIDE_GIVEN)
        difference = standard.judge(found, more)
        reason = f"{difference.where}: relative error {difference.error:.3g}, allowed {difference.allowed:.3g}"
        return Verdict(difference.passes, difference.error / difference.allowed, "" if difference.passes else reason)


def _seen(step: Step) -> Any:
    loss, output = step.loss_and_output()
    # The loss alone is differentiated. The output tells in which dtype the model computes.
    return loss, tree_map_only(Tensor, Tensor.detach, output)
