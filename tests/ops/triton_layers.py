"""Operators and layers on the Triton kernels, each check for a device: the CPU by Triton's interpreter, or a GPU."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import batchnorm
from batchnorm import Activation
from ops.kernel_cases import OPS, Case, draw

RELU = Activation("relu")


def _cases(device: str) -> Iterator[Case]:
    for shape, format, mask in (((3, 2, 3, 5), "contiguous", "random"), ((9, 5), "sliced", None)):
        yield draw(shape, torch.bfloat16, format, residual=format, mask=mask, activation=RELU, device=device)


def _arguments(name: str, case: Case) -> Iterator[tuple[Any, ...]]:
    """Ways to call an operator on a case."""
    channels, device = case.input.shape[1], case.input.device
    described = case.described
    layer = (case.weight, case.bias, case.residual, case.mask)
    mean, var = torch.randn(channels, device=device), torch.rand(channels, device=device) + 0.5
    count = torch.tensor(40, device=device)
    statistics = case.layer(mean, var)
    buffers = (torch.zeros_like(mean), torch.ones_like(mean), torch.tensor(4, device=device))
    gradient = (case.grad_output, *statistics, None)
    if name in ("moments", "double_moments"):
        yield case.input, case.mask
    elif name == "normalize":
        yield (*statistics, *described)
    elif name == "forward":
        yield (case.input, *layer, *described, True)
    elif name == "train":
        for tracked, momentum in ((buffers, 0.1), (buffers, None), ((None,) * 3, 0.1)):
            yield (case.input, *layer, *tracked, momentum, True, *described, True)
    elif name == "grad_sums":
        yield (*gradient, *described)
    elif name == "grad_input":
        yield (*gradient, count, mean, var, *described, True)
    elif name == "backward":
        for values, wanted in itertools.product((count, None), ([True] * 4, [False, True, True, False])):
            yield (*gradient, values, *described, wanted)
    else:
        momentum = 0.1 if name == "update_running" else torch.tensor(0.1, device=device)
        yield (*buffers, count, mean, var, momentum, True)


OPERATORS = (
    "moments",
    "double_moments",
    "normalize",
    "forward",
    "train",
    "grad_sums",
    "grad_input",
    "backward",
    "update_running",
    "update_running.tensor",
)


def check_operator(name: str, device: str) -> None:
    """``opcheck``: schema, fake, aliasing, and a graph of it."""
    packet, _, overload = name.partition(".")
    operator = getattr(getattr(OPS, packet), overload or "default")
    for case in _cases(device):
        for arguments in _arguments(name, case):
            torch.library.opcheck(operator, arguments)


# --- around layers ---------------------------------------------------------------------------------------------------

CHECKS: dict[str, Callable[[str], None]] = {}


def check(function: Callable[[str], None]) -> Callable[[str], None]:
    CHECKS[function.__name__] = function
    return function


class Block(nn.Module):
    """Two norms, a residual, and all that a network has around them."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False, device=device)
        self.norm = batchnorm.BatchNormAct2d(8, activation="relu", device=device)
        self.second = nn.Conv2d(8, 8, 3, padding=1, bias=False, device=device)
        self.last = batchnorm.BatchNormAct2d(8, activation="silu", momentum=None, device=device)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x))
        return self.last(self.second(x), residual=x)


def batch(device: str) -> Tensor:
    return torch.randn(4, 3, 6, 6, generator=torch.Generator("cpu").manual_seed(0), device="cpu").to(device)


def stepped(model: nn.Module, x: Tensor, call: Callable[[Tensor], Tensor] | None = None) -> dict[str, Tensor]:
    """Output, gradients and buffers of a step of training."""
    x = x.detach().requires_grad_()
    output = model(x) if call is None else call(x)
    output.float().square().sum().backward()
    gradients = {f"gradient of {name}": parameter.grad for name, parameter in model.named_parameters()}
    assert x.grad is not None
    return {"output": output.detach(), "dx": x.grad, **gradients, **dict(model.named_buffers())}


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor], **tolerance: float) -> None:
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name].cpu(), tensor.cpu(), **tolerance, msg=lambda m, n=name: f"{n}: {m}")


@check
def steps_are_deterministic(device: str) -> None:
    model, x = Block(device), batch(device)
    found = [stepped(copy.deepcopy(model), x) for _ in range(2)]
    assert_same(*found, rtol=0, atol=0)


@check
def one_graph_without_a_break(device: str) -> None:
    """Forward and backward pass."""
    torch._dynamo.reset()
    model, x = Block(device), batch(device)
    compiled = copy.deepcopy(model)
    backend = "inductor" if device == "cuda" else "aot_eager"
    call = torch.compile(compiled, fullgraph=True, backend=backend)
    for _ in range(2):
        model.zero_grad()
        compiled.zero_grad()
        assert_same(stepped(compiled, x, call), stepped(model, x), rtol=1e-3, atol=1e-3)


@check
def second_derivatives(device: str) -> None:
    results = []
    for where in dict.fromkeys(("cpu", device)):
        torch.manual_seed(0)
        norm = batchnorm.BatchNormAct2d(3, activation="silu", dtype=torch.float64, device=where)
        x = batch("cpu").double().to(where).requires_grad_()
        (slope,) = torch.autograd.grad(norm(x).pow(3).sum(), x, create_graph=True)
        results.append(torch.autograd.grad(slope.square().sum(), [x, *norm.parameters()])[0].cpu())
    torch.testing.assert_close(results[0], results[-1])
    sampled = torch.randn(3, 2, 2, dtype=torch.float64, device=device, requires_grad=True)
    norm = batchnorm.BatchNormAct1d(2, activation="tanh", dtype=torch.float64, device=device)
    assert torch.autograd.gradgradcheck(norm, (sampled,))


@check
def autograd_finds_out_that_buffers_moved(device: str) -> None:
    norm = batchnorm.BatchNorm1d(3, device=device)
    product = torch.ones(3, device=device, requires_grad=True) * norm.running_mean
    norm(torch.randn(8, 3, device=device))
    try:
        product.sum().backward()
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)  # noqa: PT017
    else:
        raise AssertionError("a tensor that was kept has changed, and nobody noticed")


@check
def profilers_see_operators(device: str) -> None:
    norm, x = batchnorm.BatchNormAct1d(3, device=device), torch.randn(8, 3, device=device, requires_grad=True)
    wanted = stepped(copy.deepcopy(norm), x)
    with torch.profiler.profile() as profile:
        found = stepped(norm, x)
    assert {"batchnorm::train", "batchnorm::backward"} <= {event.key for event in profile.key_averages()}
    assert_same(found, wanted)
