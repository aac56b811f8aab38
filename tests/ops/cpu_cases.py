"""Cases for the compiled kernels: what goes in, what the float64 reference says, and how far off each number may be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from batchnorm import Activation, reference
from batchnorm.ops import cpu
from contract import FORMATS

Array: TypeAlias = np.ndarray

OPS = torch.ops.batchnorm

if cpu.available:
    from batchnorm.ops.cpu import _kernels

    SETS: tuple[str, ...] = _kernels.instruction_sets()
else:
    SETS = ()


@contextmanager
def computing(instruction_set: str) -> Iterator[None]:
    """Have this instruction set compute in here."""
    before = _kernels.instruction_set()
    _kernels.use(instruction_set)
    try:
        yield
    finally:
        _kernels.use(before)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Have torch compute in this many threads in here."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# Parameters that are nobody's defaults; the second leaky_relu goes down on both sides of 0.
ACTIVATIONS: tuple[Activation, ...] = (
    Activation("identity"),
    Activation("relu"),
    Activation("leaky_relu", negative_slope=0.3),
    Activation("leaky_relu", negative_slope=-0.7),
    Activation("relu6"),
    Activation("hardtanh", min_val=-0.4, max_val=0.9),
    Activation("silu"),
    Activation("hardswish"),
    Activation("gelu"),
    Activation("gelu_tanh"),
    Activation("sigmoid"),
    Activation("tanh"),
    Activation("elu", alpha=1.7),
)


def _expanded(x: Tensor) -> Tensor:
    return x[:1].expand(x.shape)


FORMATS_AND_EXPANDED: dict[str, Callable[[Tensor], Tensor]] = {**FORMATS, "expanded": _expanded}


def strided(vector: Tensor | None) -> Tensor | None:
    """The same vector with a gap after each value."""
    return None if vector is None else torch.stack([vector, torch.full_like(vector, 1e6)], -1)[..., 0]


@dataclass
class Case:
    """Everything that one layer's forward and backward pass takes."""

    input: Tensor
    grad_output: Tensor
    residual: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    mask: Tensor | None
    activation: Activation
    eps: float = 1e-5

    @property
    def described(self) -> tuple[float, str, list[float]]:
        return self.eps, self.activation.name, list(self.activation.parameters)

    def forward(self, keep_bits: bool = False) -> tuple[Tensor, ...]:
        tensors = (self.input, self.weight, self.bias, self.residual, self.mask)
        return OPS.forward(*tensors, *self.described, keep_bits)

    def layer(self, mean: Tensor, var: Tensor, residual: bool = True) -> tuple[Tensor | None, ...]:
        """From the input on, as the operators that are given statistics take it."""
        return self.input, mean, var, self.weight, self.bias, self.residual if residual else None, self.mask


def draw(
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    format: str = "contiguous",
    grad_format: str | None = None,
    residual: str | None = None,
    affine: str = "both",
    mask: str | None = None,
    activation: Activation = ACTIVATIONS[0],
    seed: int = 0,
) -> Case:
    """A case by its description: the formats of input, gradient and residual, and a mask by the name of its kind."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    def pick(values: tuple[float, ...]) -> Tensor:
        chosen = torch.randint(len(values), (shape[1],), generator=generator)
        return torch.tensor(values, dtype=torch.float64)[chosen].view(1, -1, *[1] * (len(shape) - 2))

    x = pick((0.0, 3.0, -50.0)) + pick((1.0, 0.1, 10.0)) * normal(*shape)
    parameters = torch.float64 if dtype == torch.float64 else torch.float32
    weight, bias = (normal(shape[1]).to(parameters) for _ in range(2))
    return Case(
        FORMATS_AND_EXPANDED[format](x.to(dtype)),
        FORMATS_AND_EXPANDED[grad_format or format](normal(*shape).to(dtype)),
        None if residual is None else FORMATS_AND_EXPANDED[residual](normal(*shape).to(dtype)),
        weight if affine in ("both", "weight") else None,
        bias if affine in ("both", "bias") else None,
        None if mask is None else _mask(mask, (shape[0], *shape[2:]), generator),
        activation,
    )


MASKS = ("random", "runs", "sample", "one", "all", "none")


def _mask(kind: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    mask = torch.ones(shape, dtype=torch.bool)
    if kind == "random":
        return torch.rand(shape, generator=generator) < 0.6
    if kind == "runs":  # as padded sequences have them: valid up to a length of its own
        rows = mask.view(shape[0], -1)
        lengths = torch.randint(rows.shape[1] + 1, (shape[0], 1), generator=generator)
        return (torch.arange(rows.shape[1]) < lengths).view(shape)
    if kind == "sample":
        mask[0] = False
    elif kind == "one":
        mask[:] = False
        mask.view(-1)[mask.numel() // 2] = True
    elif kind == "none":
        mask[:] = False
    return mask


# --- what is true, and how far off a result may be -------------------------------------------------------------------


@dataclass(frozen=True)
class Bounded:
    """A true value and the largest error that passes, each an array of the same shape."""

    value: Array
    error: Array

    def check(self, what: str, found: Tensor) -> None:
        result = found.detach().double().numpy()
        assert result.shape == self.value.shape, f"{what}: {result.shape}, expected {self.value.shape}"
        off = np.abs(result - self.value)
        bad = ~(off <= self.error)
        if bad.any():
            place = tuple(int(i[0]) for i in np.nonzero(bad))
            raise AssertionError(
                f"{what}: {bad.sum()} of {bad.size} wrong, the first at {place}: {result[place]:.9g},"
                f" expected {self.value[place]:.9g} up to {self.error[place]:.2g}"
            )


def _reference_activation(activation: Activation) -> reference.Activation:
    names = {"leaky_relu": ("negative_slope",), "hardtanh": ("min_val", "max_val"), "elu": ("alpha",)}
    if activation.name == "gelu_tanh":
        return reference.Activation("gelu", approximate="tanh")
    given = dict(zip(names.get(activation.name, ()), activation.parameters, strict=True))
    return reference.Activation(activation.name, **given)


def _kinks(activation: Activation) -> list[tuple[float, float]]:
    """Where the derivative jumps, and by how much: on which side of it a rounded z falls is a matter of luck."""
    numbers = activation.parameters
    return {
        "relu": [(0.0, 1.0)],
        "leaky_relu": [(0.0, 1 - numbers[0])] if numbers else [],
        "relu6": [(0.0, 1.0), (6.0, 1.0)],
        "hardtanh": [(bound, 1.0) for bound in numbers],
        "hardswish": [(-3.0, 0.5), (3.0, 0.5)],
        "elu": [(0.0, numbers[0])] if numbers else [],
    }.get(activation.name, [])


def _steepest(activation: Activation) -> float:
    """No activation here, and no derivative of one, is steeper."""
    return max(1.5, *(abs(number) for number in activation.parameters), 0.0)


def expected(case: Case, mean: Tensor | None = None, var: Tensor | None = None) -> dict[str, Bounded]:
    """Every result of the operators on this case; with statistics given, those of evaluation.

    The bounds add up what each step may round, element by element, with ``u`` one step of the statistics' dtype (two
    roundings):

    - The mean is rounded once, beside sums of values that the shift made small: ``u·|mean| + 8u·std``.
    - The variance loses up to a factor of 9 to its shift (``kGoodShift``), and its sums a few steps: ``64u``.
    - x̂ takes over both. z rounds three times, the activation's own formula eight steps of its terms.
    - Sums run in float over at most some hundred values in 32 to 64 parts, and in double above: ``32u`` of the sum of
      magnitudes is ten times what is seen.
    - What is stored in half precision is rounded once more.
    - At a kink of the activation either side passes for a z within its own bound.
    """
    training = mean is None
    dtype = case.input.dtype
    u = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    x, dy = (t.double().numpy() for t in (case.input, case.grad_output))
    mask = None if case.mask is None else case.mask.numpy()
    channels = x.shape[1]
    weight = np.ones(channels) if case.weight is None else case.weight.double().numpy()
    bias = np.zeros(channels) if case.bias is None else case.bias.double().numpy()
    residual = np.zeros_like(x) if case.residual is None else case.residual.double().numpy()
    arguments: dict[str, Any] = {
        "residual": residual,
        "mask": mask,
        "activation": _reference_activation(case.activation),
        "eps": case.eps,
    }
    if training:
        output, saved = reference.forward(x, weight, bias, **arguments)
        found = reference.backward(dy, saved)
        moments = reference.moments(x, mask)
        means, variances, count = moments.mean, moments.variance, moments.count
    else:
        assert mean is not None
        assert var is not None
        means, variances = mean.double().numpy(), var.double().numpy()
        output, saved = reference.forward_evaluation(x, means, variances, weight, bias, **arguments)
        found = reference.backward_evaluation(dy, saved)
        count = saved.count

    def per_channel(vector: Array) -> Array:
        return vector.reshape(1, -1, *[1] * (x.ndim - 2))

    def valid(values: Array) -> Array:
        return values if mask is None else np.where(mask[:, np.newaxis], values, 0.0)

    def total(values: Array) -> Array:
        return valid(values).sum(axis=(0, *range(2, x.ndim)))

    def stored(values: Array) -> Array:
        if dtype in (torch.float32, torch.float64):
            return np.zeros_like(values)
        limits = torch.finfo(dtype)
        return 0.5 * limits.eps * np.abs(values) + limits.smallest_normal * limits.eps

    std = np.sqrt(variances)
    mean_error = u * np.abs(means) + (8 * u * std if training else 0.0)
    var_error = 64 * u * variances
    invstd = 1 / np.sqrt(variances + case.eps)
    x_hat = valid((x - per_channel(means)) * per_channel(invstd))
    x_hat_error = valid(per_channel(invstd * mean_error) + (36 if training else 4) * u * np.abs(x_hat))
    scaled = x_hat * per_channel(weight)
    z = scaled + per_channel(bias) + residual
    terms = np.abs(scaled) + np.abs(per_channel(bias)) + np.abs(residual)
    z_error = np.abs(per_channel(weight)) * x_hat_error + 3 * u * terms
    steep = _steepest(case.activation)
    output_error = valid(steep * z_error + 8 * u * (np.abs(output) + np.abs(z)) + stored(output))

    slope_error = steep * z_error + 8 * u * (1 + np.abs(z))
    for place, jump in _kinks(case.activation):
        slope_error = slope_error + np.where(np.abs(z - place) <= z_error, abs(jump), 0.0)
    dz = found.residual
    assert dz is not None
    assert found.weight is not None
    assert found.bias is not None
    dz_error = valid(np.abs(dy) * (slope_error if case.activation.name != "identity" else 0.0))
    n = max(count, 1)
    bias_error = total(dz_error) + 32 * u * total(np.abs(dz))
    weight_error = total(dz_error * np.abs(x_hat) + np.abs(dz) * x_hat_error) + 32 * u * total(np.abs(dz * x_hat))
    through_error, through_terms = dz_error, np.abs(dz)
    if training:
        mean_part, var_part = per_channel(found.bias / n), x_hat * per_channel(found.weight / n)
        through_terms = np.abs(dz) + np.abs(mean_part) + np.abs(var_part)
        through_error = (
            dz_error
            + per_channel(bias_error / n)
            + np.abs(x_hat) * per_channel(weight_error / n)
            + x_hat_error * np.abs(per_channel(found.weight / n))
        )
    scale = np.abs(per_channel(weight * invstd))
    dx_error = valid(scale * (through_error + (40 if training else 8) * u * through_terms) + stored(found.x))
    return {
        "count": Bounded(np.array(float(count)), np.array(0.0)),
        "mean": Bounded(means, mean_error),
        "var": Bounded(variances, var_error),
        "output": Bounded(output, output_error),
        "grad_input": Bounded(found.x, dx_error),
        "grad_weight": Bounded(found.weight, weight_error),
        "grad_bias": Bounded(found.bias, bias_error),
        "grad_residual": Bounded(dz, dz_error + 2 * u * np.abs(dz) + stored(dz)),
    }
