"""What holds of the Triton kernels beyond each result on each case; on the CPU by Triton's interpreter, or on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from batchnorm import Activation, reference
from batchnorm.ops import running
from batchnorm.ops.triton import compute, kernels
from ops.kernel_cases import OPS, Case, strided
from ops.kernel_truth import reference_activation
from ops.test_accuracy import accuracy
from tolerance import double


def results(case: Case) -> dict[str, Tensor]:
    """All that a step of training and one of evaluation give, the buffers among them."""
    channels, device = case.input.shape[1], case.input.device
    buffers = tuple(t.to(device) for t in (torch.zeros(channels), torch.ones(channels), torch.tensor(0)))
    tensors = (case.input, case.weight, case.bias, case.residual, case.mask)
    needs_bit = case.activation.needs_bit
    output, count, mean, var, bits = OPS.train(*tensors, *buffers, 0.3, True, *case.described, needs_bit)
    found = {"output": output, "count": count, "mean": mean, "var": var}
    found |= dict(zip(("running_mean", "running_var", "num_batches_tracked"), buffers, strict=True))
    for mode, kept, values in (("training", bits if needs_bit else None, count), ("evaluation", None, None)):
        layer = (case.grad_output, *case.layer(mean, var, residual=kept is None), kept)
        gradients = OPS.backward(*layer, values, *case.described, [True] * 4)
        names = ("grad_input", "grad_weight", "grad_bias", "grad_residual")
        found |= {f"{name} in {mode}": gradient for name, gradient in zip(names, gradients, strict=True)}
    moments = OPS.double_moments(case.input, case.mask)
    found |= {"mean, in double": moments[1], "var, in double": moments[2]}
    return found | {"normalize": OPS.normalize(*case.layer(mean, var), *case.described)}


def assert_same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


# Over where floats are, and where activations bend.
LINE = torch.cat([torch.linspace(-110, 110, 4001), torch.linspace(-4, 4, 4001)]).double()
LINE = torch.cat([LINE, 10 ** torch.linspace(-40, 18, 501).double(), -(10 ** torch.linspace(-40, 18, 501).double())])


def check_over_the_whole_line(dtype: torch.dtype, activation: Activation, device: str, steps: tuple[int, int]) -> None:
    """Value and derivative, off by so many steps at most: of 1, or of themselves where they are larger."""
    z = LINE.to(device, dtype)
    one = torch.ones(1, dtype=dtype, device=device)  # with mean 0, variance 1 and eps 0, z is the input
    described = (0.0, activation.name, list(activation.parameters))
    column, none = z.unsqueeze(1), (None,) * 4
    output = OPS.normalize(column, 0 * one, one, *none, *described)
    wanted = [True, False, False, False]
    gradient = OPS.backward(torch.ones_like(column), column, 0 * one, one, *none, None, None, *described, wanted)[0]
    true = reference_activation(activation)
    x = double(z)
    with np.errstate(all="ignore"):
        formulas = true.value(x), true.derivative(x)
    for what, found, formula, allowed in zip(
        ("value", "derivative"), (output[:, 0], gradient[:, 0]), formulas, steps, strict=True
    ):
        expected = np.where(np.isnan(formula), (x > 0).astype(float), formula)  # gelu_tanh's cube overflows far out
        error = np.abs(double(found) - expected) / np.maximum(1, np.abs(expected)) / torch.finfo(dtype).eps
        worst = int(np.argmax(error))
        assert error[worst] <= allowed, (
            f"{what} at {x[worst]:g}: {found[worst]:g}, expected {expected[worst]:g}, off by {error[worst]:.3g} steps"
        )


def check_every_half_precision_number(dtype: torch.dtype, device: str) -> None:
    """Each is read and rounded as torch does, exact ties among the products."""
    numbers = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).to(device)
    one = torch.ones(1, device=device)
    for weight in (1.0, 1 + 2**-8, 0.3):
        scale = one * weight
        wanted = (numbers.float() * scale + 0.0).to(dtype)  # and the bias: no negative zero
        output = OPS.normalize(numbers.view(-1, 1), 0 * one, one, scale, None, None, None, 0.0, "identity", [])[:, 0]
        assert torch.equal(output.isnan(), wanted.isnan())
        kept = ~wanted.isnan()
        assert torch.equal(output[kept].view(torch.int16), wanted[kept].view(torch.int16))


# --- running buffers -------------------------------------------------------------------------------------------------


def moves(device: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """What ``update_running`` is told, by what is odd in it."""
    channels = 11

    def vector(value: float, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.full((channels,), value, dtype=dtype, device=device)

    generator = torch.Generator("cpu").manual_seed(0)
    plain = {
        "running_mean": vector(0.5),
        "running_var": vector(2.0),
        "num_batches_tracked": torch.tensor(7, device=device),
        "count": torch.tensor(60, device=device),
        "mean": torch.randn(channels, generator=generator).to(device),
        "var": torch.rand(channels, generator=generator).to(device),
        "momentum": 0.3,
        "skip_nonfinite": True,
    }
    yield "nothing", plain
    yield "a number as count", plain | {"count": 60}
    yield "no count of batches", plain | {"num_batches_tracked": None}
    for count in (0, 1, 2):
        yield f"count {count}", plain | {"count": torch.tensor(count, device=device)}
        yield f"the number {count} as count", plain | {"count": count}
    for momentum in (0.0, 1.0, 1 / 3, torch.tensor(0.3, device=device), torch.tensor(1 / 7, device=device)):
        yield f"momentum {momentum}", plain | {"momentum": momentum}
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        buffers = {"running_mean": vector(0.5, dtype), "running_var": vector(2.0, dtype)}
        yield f"{dtype} buffers", plain | buffers
        gaps = {name: strided(buffer) for name, buffer in buffers.items()}
        yield f"{dtype} buffers with gaps", plain | gaps
        double_batch = {name: plain[name].double() for name in ("mean", "var")}
        yield f"{dtype} buffers, a batch in double", plain | buffers | double_batch
    yield "buffers of two dtypes", plain | {"running_mean": vector(0.5, torch.float64)}
    batch_with_gaps = {name: strided(plain[name]) for name in ("mean", "var")}
    yield "a batch with gaps", plain | batch_with_gaps
    for skip in (True, False):
        for name in ("mean", "var"):
            for bad in (float("nan"), float("inf"), -float("inf")):
                statistic = plain[name].clone()
                statistic[-1] = bad
                yield f"{bad} in {name}, skip {skip}", plain | {name: statistic, "skip_nonfinite": skip}
        overflow = plain["var"] * 1e6
        half = {"running_var": vector(2.0, torch.float16), "var": overflow, "skip_nonfinite": skip}
        yield f"a variance that the buffer cannot hold, skip {skip}", plain | half


def check_update_running(device: str) -> None:
    """As :func:`batchnorm.ops.running.update_running`, and autograd finds out that the buffers moved."""
    for what, given in moves(device):
        buffers = ("running_mean", "running_var", "num_batches_tracked")
        wanted = {n: v.clone() if n in buffers and v is not None else v for n, v in given.items()}
        versions = {name: given[name]._version for name in buffers if given[name] is not None}
        compute.update_running(**given)
        running.update_running(**wanted)
        for name, version in versions.items():
            found, expected = given[name], wanted[name]
            # Plain operations round to the buffer's dtype after each step.
            eps = torch.finfo(found.dtype).eps if found.is_floating_point() else 0.0
            described = f"{what}: {name}"
            torch.testing.assert_close(
                found, expected, rtol=4 * eps, atol=2 * eps, equal_nan=True, msg=lambda m, d=described: f"{d}: {m}"
            )
            if not isinstance(given["count"], int):
                assert found._version > version, f"{described} was written to past autograd"


# --- accuracy --------------------------------------------------------------------------------------------------------


class On(ModuleType):
    """The Triton kernels for tensors on the CPU, which it takes to a device and back: as ``accuracy.py`` calls them."""

    def __init__(self, device: str) -> None:
        super().__init__(f"kernels on {device}")
        self.device = device

    def _there(self, arguments: tuple[Any, ...]) -> list[Any]:
        return [argument.to(self.device) if isinstance(argument, Tensor) else argument for argument in arguments]

    def train(self, *arguments: Any) -> tuple[Tensor, ...]:
        moved = self._there(arguments)
        found = kernels.train(*moved)
        for buffer, there in zip(arguments[5:7], moved[5:7], strict=True):
            buffer.copy_(there)
        return tuple(tensor.cpu() for tensor in found)

    def backward(self, *arguments: Any) -> tuple[Tensor | None, ...]:
        found = kernels.backward(*self._there(arguments))
        return tuple(None if tensor is None else tensor.cpu() for tensor in found)


def check_accuracy(name: str, dtype: torch.dtype, device: str, draws: int = 3) -> None:
    """Design rule 2, judged as the CPU's kernels are; torch's own error is that of its kernels on the CPU."""
    with patch.object(accuracy, "KERNELS", {"triton": On(device)}):
        broken = [row for row in accuracy.measure(name, dtype, draws) if not row.holds]
    assert not broken, "\n".join(map(str, broken))


def check_padding_hides_no_spread(format: Callable[[Tensor], Tensor], device: str) -> None:
    """Beside a mean of 1e4 a spread of 1e-2 is known to what float32 holds, though most of what is there is padding."""
    lengths = torch.tensor([300, 40, 7, 5, 3, 2, 1, 0])
    mask = torch.arange(300) < lengths.view(-1, 1)
    x = 1e4 + 1e-2 * torch.randn(8, 3, 300, generator=torch.Generator("cpu").manual_seed(0))
    true = reference.moments(double(x), mask.numpy())
    _, mean, var = OPS.moments(format(x.to(device)), mask.to(device))
    np.testing.assert_allclose(double(mean), true.mean, rtol=2e-7)
    np.testing.assert_allclose(double(var), true.variance, rtol=1e-4)
