"""Models whose norms compute something: a fresh one, of mean 0 and variance 1, would hide what is wrong."""

import copy
from typing import Any

import torch

from batchnorm.surgery.fold import fold


def filled(model: torch.nn.Module) -> torch.nn.Module:
    """Every norm gets statistics and parameters that differ by channel, of both signs; in place."""
    for module in model.modules():
        mean, var = getattr(module, "running_mean", None), getattr(module, "running_var", None)
        if mean is not None and var is not None:
            mean.normal_(std=0.5)
            var.uniform_(0.5, 2)
            if module.weight is not None:
                torch.nn.init.uniform_(module.weight, -1.5, 1.5)
            if module.bias is not None:
                torch.nn.init.normal_(module.bias)
    return model


def calibrated(model: torch.nn.Module, *batches: torch.Tensor) -> torch.nn.Module:
    """As :func:`filled`, with the statistics of batches, so that what goes in matters for what comes out; in place.

    A deep network whose statistics are not those of its values gives the same for all inputs, whatever is wrong in it.
    """
    filled(model)
    norms = [module for module in model.modules() if getattr(module, "running_mean", None) is not None]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    with torch.no_grad():
        for batch in batches:
            model.train()(batch)
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()


def off(folded: torch.nn.Module, model: torch.nn.Module, *inputs: Any) -> float:
    """The largest difference of the outputs, by the largest value of the model's own, in evaluation."""
    was = model.training
    with torch.no_grad():
        right, found = model.eval()(*inputs).double(), folded(*inputs).double()
    model.train(was)
    assert found.shape == right.shape
    return float((found - right).abs().max() / right.abs().max())


class Code(torch.nn.Module):
    """Modules, and a forward pass given as a function of this module and the inputs."""

    def __init__(self, forward: Any, **modules: torch.nn.Module) -> None:
        super().__init__()
        self.code = forward
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, *inputs: Any) -> Any:
        return self.code(self, *inputs)


def check_folded(model: torch.nn.Module, x: torch.Tensor, count: int = 1) -> None:
    """All norms go, and the outputs stay: in float64, float32 and bfloat16, each folded from its own weights."""
    done = fold(model, x)
    assert [outcome.action for outcome in done.changed] == ["folded"] * count
    assert not done.kept
    assert not any(isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in done.model.modules())
    assert off(done.model, model, x) < 1e-12
    assert done.errors.by_dtype["float64"] < 1e-12
    for dtype, bound in ((torch.float32, 1e-5), (torch.bfloat16, 0.1)):
        lower = copy.deepcopy(model).to(dtype)
        done = fold(lower, x.to(dtype))
        assert {parameter.dtype for parameter in done.model.parameters()} == {dtype}
        assert off(done.model, lower, x.to(dtype)) < bound
        assert done.errors.by_dtype["float64"] < 1e-12
