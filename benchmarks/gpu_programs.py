"""What the library would launch on a GPU, compiled for that GPU and read: none is needed, and nothing runs.

``python benchmarks/gpu_programs.py`` reads a list of jobs as JSON, ``[{"target": …, "case": {…}, "loops": …}]``, and
prints for each the list of its launches. The functions of :mod:`batchnorm.ops.triton.compute` are called as layers call
them, on tensors of the processor, but what they launch is compiled and goes no further; a stand-in for Triton's driver
names the GPU. It needs a process of its own, in which Triton does not interpret.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

# Before Triton is imported, which asks for it then.
os.environ.pop("TRITON_INTERPRET", None)

import torch
from machine_code import of_amd, of_nvidia
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction, driver

from batchnorm.activation import Activation
from batchnorm.ops.bits import bits_size
from batchnorm.ops.eager import statistics_dtype
from batchnorm.ops.triton import compute, layout
from batchnorm.ops.triton.passes import plan

__all__ = ["TARGETS", "Case", "launches"]

TARGETS = {
    "sm_75": GPUTarget("cuda", 75, 32),
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx90a": GPUTarget("hip", "gfx90a", 64),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
_FORMATS = {"planes": torch.contiguous_format, "rows": torch.channels_last}


@dataclass(frozen=True)
class Case:
    """One layer on one batch.

    Attributes:
        shape: (N, C, *spatial).
        dtype: By torch's name.
        layout: ``"planes"`` or ``"rows"``; of 4-D input, other has one.
        activation: By name, with its default parameters.
        residual: Whether there is one.
        mask: Whether there is one.
        affine: Whether there are weight and bias.
        buffers: Whether training moves running buffers.
        wide: Whether every offset takes 64 bits, as those of 2³¹ values do.
        passes: Which functions are called, of those of ``_PASSES``.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    layout: str = "planes"
    activation: str = "relu"
    residual: bool = False
    mask: bool = False
    affine: bool = True
    buffers: bool = True
    wide: bool = False
    passes: tuple[str, ...] = ("train", "backward", "normalize")
    tensors: dict[str, Tensor | None] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        like = torch.empty(self.shape, dtype=getattr(torch, self.dtype))
        if len(self.shape) == 4:
            like = like.contiguous(memory_format=_FORMATS[self.layout])
        channels, kept = self.shape[1], Activation(self.activation).needs_bit and self.residual
        vectors = {name: like.new_empty(channels, dtype=statistics_dtype(like.dtype)) for name in _VECTORS}
        if not self.affine:
            vectors["weight"] = vectors["bias"] = None
        mask = torch.empty((self.shape[0], 1, *self.shape[2:]), dtype=torch.bool) if self.mask else None
        tensors = {
            "input": like,
            "grad_output": torch.empty_like(like),
            "residual": torch.empty_like(like) if self.residual else None,
            "bits": like.new_empty(bits_size(like), dtype=torch.uint8) if kept else None,
            "count": torch.ones((), dtype=torch.int64),
            "mask": mask,
        }
        object.__setattr__(self, "tensors", tensors | vectors)


_VECTORS = ("mean", "var", "weight", "bias", "running_mean", "running_var", "sum_dz", "sum_dz_standardized")
_EPS = 1e-5


def _train(case: Case, all: dict[str, Any], act: Activation) -> None:
    buffers = (all["running_mean"], all["running_var"], torch.zeros((), dtype=torch.int64))
    layer = (all["input"], all["weight"], all["bias"], all["residual"], all["mask"])
    settings = (0.1, True, _EPS, act, all["bits"] is not None)
    compute.train(*layer, *(buffers if case.buffers else (None, None, None)), *settings)


def _gradient_arguments(all: dict[str, Any]) -> tuple[Any, ...]:
    names = ("grad_output", "input", "mean", "var", "weight", "bias")
    return (*(all[name] for name in names), None if all["bits"] is not None else all["residual"], all["mask"])


def _backward(case: Case, all: dict[str, Any], act: Activation) -> None:
    wanted = (True, case.affine, case.affine, case.residual)
    compute.backward(*_gradient_arguments(all), all["bits"], all["count"], _EPS, act, wanted)


def _backward_in_evaluation(case: Case, all: dict[str, Any], act: Activation) -> None:
    wanted = (True, case.affine, case.affine, case.residual)
    compute.backward(*_gradient_arguments(all), all["bits"], None, _EPS, act, wanted)


def _normalize(case: Case, all: dict[str, Any], act: Activation) -> None:
    vectors = (all["mean"], all["var"], all["weight"], all["bias"])
    compute.normalize(all["input"], *vectors, all["residual"], all["mask"], _EPS, act)


def _grad_sums(case: Case, all: dict[str, Any], act: Activation) -> None:
    compute.grad_sums(*_gradient_arguments(all), all["bits"], _EPS, act)


def _grad_input(case: Case, all: dict[str, Any], act: Activation) -> None:
    sums = (all["count"], all["sum_dz"], all["sum_dz_standardized"])
    compute.grad_input(*_gradient_arguments(all), all["bits"], *sums, _EPS, act, case.residual)


def _moments(case: Case, all: dict[str, Any], act: Activation) -> None:
    compute.moments(all["input"], all["mask"])


def _double_moments(case: Case, all: dict[str, Any], act: Activation) -> None:
    compute.double_moments(all["input"], all["mask"])


def _update_running(case: Case, all: dict[str, Any], act: Activation) -> None:
    buffers = (all["running_mean"], all["running_var"], torch.zeros((), dtype=torch.int64))
    for count, momentum in ((all["count"], 0.1), (all["count"], torch.tensor(0.1)), (12, 0.1)):
        compute.update_running(*buffers, count, all["mean"], all["var"], momentum, True)


_PASSES = {
    "train": _train,
    "backward": _backward,
    "backward in evaluation": _backward_in_evaluation,
    "normalize": _normalize,
    "grad_sums": _grad_sums,
    "grad_input": _grad_input,
    "moments": _moments,
    "double_moments": _double_moments,
    "update_running": _update_running,
}


class _NoDevice:
    """What Triton asks of its driver when it compiles. Each target is a device of its own to its caches."""

    def __init__(self, name: str) -> None:
        self._name = name

    def get_current_target(self) -> GPUTarget:
        return TARGETS[self._name]

    def get_current_device(self) -> int:
        return list(TARGETS).index(self._name)

    def get_current_stream(self, device: int = 0) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


@contextmanager
def _compiling(target: str) -> Iterator[list[tuple[Any, dict[str, Any]]]]:
    """Has launches compiled and no more, in the order in which they would be made: the code, and what was launched."""
    found: list[tuple[Any, dict[str, Any]]] = []
    run = JITFunction.run

    def compile_only(kernel: JITFunction[Any], *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        code = run(kernel, *arguments, grid=grid, warmup=True, **options)
        assert code.metadata.target == TARGETS[target], "another target's code"
        constants = {name: value for name, value in options.items() if name.isupper()}
        constants = {name: str(value) if name == "ACC" else value for name, value in constants.items()}
        launch = {"kernel": kernel.fn.__name__, "programs": grid[0], "warps": options["num_warps"]}
        launch["steps"] = dict(zip(kernel.arg_names, arguments, strict=False)).get("steps", 1)
        found.append((code, {**launch, "constants": constants}))

    driver.set_active(_NoDevice(target))
    JITFunction.run = compile_only
    try:
        yield found
    finally:
        JITFunction.run = run


@contextmanager
def _offsets(wide: bool) -> Iterator[None]:
    from_ = layout._WIDE_FROM
    layout._WIDE_FROM = 0 if wide else from_
    plan.cache_clear()
    try:
        yield
    finally:
        layout._WIDE_FROM = from_
        plan.cache_clear()


def launches(case: Case, target: str, *, loops: bool = False) -> list[dict[str, Any]]:
    """Every launch of a case's passes: pass, kernel, programs, warps, constants, and what the code uses.

    Args:
        case: The layer and its batch.
        target: One of ``TARGETS``.
        loops: Whether to count instructions too (:func:`machine_code.sass`).
    """
    found = []
    activation = Activation(case.activation)
    for name in case.passes:
        with _compiling(target) as made, _offsets(case.wide):
            _PASSES[name](case, case.tensors, activation)
        for code, launch in made:
            if "amdgcn" in code.asm:
                uses = of_amd(code.asm["amdgcn"])
            else:
                uses = of_nvidia(code.asm["ptx"], code.asm["cubin"], loops=loops)
            # As they are written: the compiler makes more of them of multiplications and additions.
            fused = code.asm["ttir"].count("math.fma")
            found.append({"pass": name, **launch, "shared": code.metadata.shared, "fused": fused, **uses})
    return found


def main() -> None:
    """Jobs from standard input, their launches to standard output."""
    answers = []
    for job in json.load(sys.stdin):
        case = Case(**{name: tuple(value) if isinstance(value, list) else value for name, value in job["case"].items()})
        answers.append(launches(case, job["target"], loops=job.get("loops", False)))
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
