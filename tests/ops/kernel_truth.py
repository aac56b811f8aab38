"""What is true of a case, and how far off each number may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from batchnorm import Activation, reference
from ops.kernel_cases import Case
from tolerance import double

Array: TypeAlias = np.ndarray


@dataclass(frozen=True)
class Bounded:
    """A true value and the largest error that passes, each an array of the same shape."""

    value: Array
    error: Array

    def check(self, what: str, found: Tensor) -> None:
        result = double(found)
        assert result.shape == self.value.shape, f"{what}: {result.shape}, expected {self.value.shape}"
        off = np.abs(result - self.value)
        bad = ~(off <= self.error)
        if bad.any():
            place = tuple(int(i[0]) for i in np.nonzero(bad))
            raise AssertionError(
                f"{what}: {bad.sum()} of {bad.size} wrong, the first at {place}: {result[place]:.9g},"
                f" expected {self.value[place]:.9g} up to {self.error[place]:.2g}"
            )


def reference_activation(activation: Activation) -> reference.Activation:
    """The same in the reference's words."""
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
    x, dy = double(case.input), double(case.grad_output)
    mask = None if case.mask is None else case.mask.cpu().numpy()
    channels = x.shape[1]
    weight = np.ones(channels) if case.weight is None else double(case.weight)
    bias = np.zeros(channels) if case.bias is None else double(case.bias)
    residual = np.zeros_like(x) if case.residual is None else double(case.residual)
    arguments: dict[str, Any] = {
        "residual": residual,
        "mask": mask,
        "activation": reference_activation(case.activation),
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
        means, variances = double(mean), double(var)
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
