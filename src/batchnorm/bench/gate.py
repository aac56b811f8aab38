"""Correctness gates speed: every result of a contender is compared with the float64 reference before it is timed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from .. import reference
from ..reference.arrays import Array
from .cases import Case
from .inputs import Inputs
from .tolerance import RESOLUTION, allowed, double, error

__all__ = ["Errors", "Truth", "Verdict", "errors", "judge", "truth"]

# Where activations have a kink: torch and the reference choose a side by the sign of what rounding leaves.
_KINKS = {"relu": (0.0,), "relu6": (0.0, 6.0)}
_MARGIN = 4  # roundings
_CHUNK = 1 << 18  # elements: the reference is worked out a few channels at a time, within the caches

_MOMENTUM = 0.1

_Any = TypeVar("_Any")


@dataclass
class Truth:
    """The reference's results by name, and the largest magnitude of each."""

    values: dict[str, Array]
    largest: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.largest = {name: float(np.abs(value).max(initial=0.0)) for name, value in self.values.items()}


#: The largest error of each result.
Errors = dict[str, float]


@dataclass(frozen=True)
class Verdict:
    """Whether a contender's results pass.

    Attributes:
        passed: Whether all do.
        worst: The largest share of the allowed error that a result uses.
        reason: The result that fails by most, with its error and what is allowed; empty where all pass.
    """

    passed: bool
    worst: float
    reason: str


def truth(case: Case, inputs: Inputs) -> Truth:
    """Works out what is right, in float64, a few channels at a time.

    ``inputs.dy`` is changed: it becomes 0 where z lies so near a kink of the activation that rounding decides the side.
    The derivative jumps there, so that a gradient would be compared with the other side's.
    """
    vectors = (inputs.weight, inputs.bias, inputs.running_mean, inputs.running_var)
    weight, bias, running_mean, running_var = (double(vector) for vector in vectors)
    full = ["output"] + ["grad_input"] * case.training + ["grad_residual"] * (case.training and case.residual)
    by_channel = (case.shape[1], case.shape[0], *case.shape[2:])
    found = {name: np.moveaxis(np.empty(by_channel), 0, 1) for name in full}
    if case.training:
        found |= {name: np.empty_like(weight) for name in ("grad_weight", "grad_bias", "running_mean", "running_var")}
    activation = reference.Activation(case.activation)
    x_all, dy_all = _channels_apart(inputs.x), _channels_apart(inputs.dy)
    residual_all = None if inputs.residual is None else _channels_apart(inputs.residual)

    def work_out(chunk: slice) -> None:
        x = double(x_all[:, chunk])
        residual = None if residual_all is None else double(residual_all[:, chunk])
        if not case.training:
            population = (running_mean[chunk], running_var[chunk])
            y, _ = reference.forward_evaluation(
                x, *population, weight[chunk], bias[chunk], residual=residual, activation=activation
            )
            found["output"][:, chunk] = y
            return
        z, saved = reference.forward(x, weight[chunk], bias[chunk], residual=residual)
        found["output"][:, chunk] = activation.value(z)
        dy = dy_all[:, chunk]
        dy[torch.from_numpy(_near_a_kink(case, z, residual))] = 0
        gradients = reference.backward(double(dy), replace(saved, activation=activation))
        found["grad_input"][:, chunk] = gradients.x
        if gradients.residual is not None:
            found["grad_residual"][:, chunk] = gradients.residual
        found["grad_weight"][chunk], found["grad_bias"][chunk] = gradients.weight, gradients.bias
        moved = reference.update_running(
            running_mean[chunk], running_var[chunk], reference.moments(x), momentum=_MOMENTUM
        )
        found["running_mean"][chunk], found["running_var"][chunk] = moved

    _by_threads(work_out, _chunks(case))
    inputs.dy.copy_(dy_all)
    return Truth(found)


def _channels_apart(tensor: Tensor) -> Tensor:
    # A few channels that lie side by side with others are slow to gather: once for all is faster.
    return tensor.detach().movedim(1, 0).contiguous().movedim(0, 1)


def _by_threads(work: Callable[[slice], _Any], chunks: Iterable[slice]) -> list[_Any]:
    # NumPy lets go of the interpreter within its loops.
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return list(pool.map(work, chunks))


def _chunks(case: Case) -> Iterator[slice]:
    channels = case.shape[1]
    elements = case.bytes // case.item // channels
    step = max(1, _CHUNK // elements)
    for first in range(0, channels, step):
        yield slice(first, min(first + step, channels))


def _near_a_kink(case: Case, z: Array, residual: Array | None) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    # Half precision rounds the norm's output before the residual is added: the error is that of the parts, not of z.
    size = 1 + np.abs(z) if residual is None else 1 + np.abs(z) + np.abs(residual)
    margin = _MARGIN * RESOLUTION[getattr(torch, case.dtype)] * size
    near = np.zeros(z.shape, dtype=np.bool_)
    for kink in _KINKS.get(case.activation, ()):
        near |= np.abs(z - kink) <= margin
    return near


def errors(case: Case, results: Mapping[str, Tensor], right: Truth) -> Errors:
    """The largest absolute error of each result; infinite where one is missing, misshapen or no number."""
    found = {}
    for name, value in right.values.items():
        result = results.get(name)
        if result is None or tuple(result.shape) != value.shape:
            found[name] = np.inf
        elif result.dim() < 2:
            found[name] = error(result, value)
        else:
            found[name] = _largest(case, _channels_apart(result).cpu(), value)
    return {name: float("inf") if np.isnan(value) else value for name, value in found.items()}


def _largest(case: Case, result: Tensor, value: Array) -> float:
    # By chunks again: the differences need not be kept.
    return float(np.max(_by_threads(lambda chunk: error(result[:, chunk], value[:, chunk]), _chunks(case))))


def judge(case: Case, ours: Errors, torchs: Errors, right: Truth) -> Verdict:
    """The three-way tolerance on every result.

    Args:
        case: The case.
        ours: The errors of the contender.
        torchs: Those of eager torch on the same input.
        right: What is right.
    """
    worst, reason = 0.0, ""
    for name, measured in ours.items():
        half = right.values[name].ndim > 1
        dtype = getattr(torch, case.dtype) if half else torch.float32
        limit = allowed(torchs[name], dtype, right.largest[name])
        share = measured / limit if limit else (np.inf if measured else 0.0)
        if share > worst:
            worst, reason = float(share), f"{name}: error {measured:.3g}, allowed {limit:.3g}"
    return Verdict(worst <= 1, worst, "" if worst <= 1 else reason)
