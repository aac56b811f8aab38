"""What the bench's tests share: made-up rows, and contenders that are wrong or unavailable on purpose."""

from dataclasses import replace
from typing import Any

import torch

from batchnorm.bench.cases import Case
from batchnorm.bench.inputs import Inputs
from batchnorm.bench.peers import OURS, Unavailable
from batchnorm.bench.row import Environment, Row

ENVIRONMENT = Environment(
    threads=2,
    processor="a processor",
    instruction_set="AVX2",
    l2_bytes=2 << 20,
    system="Linux x86_64",
    allocator="",
    fault_nanoseconds=500.0,
    backends="native eager (cpu: not built)",
    batchnorm="0.1.0",
    torch="2.13.0",
    numpy="2.0.0",
    python="3.11.0",
    jax="",
    date="2026-01-01",
)


def row(of: Case, contender: str, **values: Any) -> Row:
    """A row of a case: timed, unless its values say something else."""
    made = Row(
        case=of.name,
        networks="resnet50:6",
        shape=of.size,
        format=of.format,
        dtype=of.dtype,
        mode=of.mode,
        activation=of.activation,
        residual=of.residual,
        contender=contender,
        status="timed",
        environment=ENVIRONMENT,
        tensor_bytes=of.bytes,
        microseconds_20=90.0,
        microseconds=100.0,
        microseconds_80=110.0,
        rounds=20,
        repetitions=1,
        copies=2,
    )
    return replace(made, **values)


def beside(of: Case, ratio: float, contender: str = "eager", **values: Any) -> list[Row]:
    """Ours and another, by the ratio of their times."""
    other = row(
        of,
        contender,
        microseconds=100.0 * ratio,
        ratio=ratio,
        ratio_low=ratio * 0.98,
        ratio_high=ratio * 1.02,
        **values,
    )
    return [row(of, "batchnorm", ratio=1.0, ratio_low=1.0, ratio_high=1.0, **values), other]


class Wrong:
    """Ours, with one result off by a little."""

    name = "batchnorm"

    def __init__(self, result: str, by: float = 1e-3) -> None:
        self.result, self.by = result, by

    def build(self, case: Case, device: str = "cpu") -> Any:
        contender: Any = OURS.build(case, device)
        right = contender.results

        def results(inputs: Inputs) -> dict[str, torch.Tensor]:
            found = right(inputs)
            found[self.result] = found[self.result].clone()
            found[self.result].view(-1)[-1] += self.by
            return found

        contender.results = results
        return contender


class Absent:
    """A peer that is not there."""

    name = "absent"

    def build(self, case: Case, device: str = "cpu") -> Any:
        raise Unavailable("it is not installed")
