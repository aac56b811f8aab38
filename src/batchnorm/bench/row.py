"""One measured contender on one case, as a row of data; and the file of such rows."""

from __future__ import annotations

import csv
import io
import platform
import types
import typing
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy
import torch

from .. import __version__, backends
from ..errors import ArgumentError
from ..files import write_whole
from ..machine import l2_bytes, processor
from .faults import allocator, fault_share
from .timing import Samples, quantiles
from .timing import ratio as ratio_of

__all__ = ["Environment", "Row", "merged", "read", "table", "with_times", "write"]

TIMED, WRONG, UNAVAILABLE = "timed", "wrong", "unavailable"


@dataclass(frozen=True)
class Environment:
    """What a row was measured on.

    Attributes:
        threads: torch's threads.
        processor: The processor's model.
        instruction_set: The widest that torch's kernels use here, such as ``AVX512``.
        l2_bytes: Bytes of one core's L2 cache.
        system: The operating system and the architecture.
        allocator: What is known of the process's memory: a preloaded malloc, torch's huge pages.
        fault_nanoseconds: What the fault of a small page added to a kernel of torch, measured in the same run.
        backends: What serves this library's layers here: the kernels' names, and what the compiled ones say.
        batchnorm: Version.
        torch: Version.
        numpy: Version.
        python: Version.
        jax: Version; empty where it is not installed.
        date: When, UTC.
    """

    threads: int
    processor: str
    instruction_set: str
    l2_bytes: int
    system: str
    allocator: str
    fault_nanoseconds: float
    backends: str
    batchnorm: str
    torch: str
    numpy: str
    python: str
    jax: str
    date: str

    @classmethod
    def now(cls, fault_seconds: float) -> Environment:
        """Describes this process and machine.

        Args:
            fault_seconds: From :func:`batchnorm.bench.faults.fault_seconds`.
        """
        return cls(
            threads=torch.get_num_threads(),
            processor=processor(),
            instruction_set=torch.backends.cpu.get_cpu_capability(),
            l2_bytes=l2_bytes(),
            system=f"{platform.system()} {platform.machine()}",
            allocator=allocator(),
            fault_nanoseconds=1e9 * fault_seconds,
            backends=_backends(),
            batchnorm=__version__,
            torch=torch.__version__,
            numpy=numpy.__version__,
            python=platform.python_version(),
            jax=_installed("jax"),
            date=datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        )


def _backends() -> str:
    found = backends()
    return f"{' '.join(each.name for each in found if each.available)} ({found[0].name}: {found[0].reason})"


@cache
def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


@dataclass(frozen=True)
class Row:
    """One contender on one case. What was not measured is None.

    Attributes:
        case: Its name; the target's for a user's own model.
        networks: Where the case occurs, and how often: ``resnet50:6 resnet18:4``.
        shape: Of the input.
        format: ``contiguous`` or ``channels-last``.
        dtype: Of the input.
        mode: See :class:`batchnorm.bench.cases.Case`; ``model`` for a user's training step.
        activation: What follows the norm.
        residual: Whether a sum does.
        contender: ``batchnorm``, or a peer.
        status: ``timed``; ``wrong`` where a result broke the tolerance; ``unavailable``.
        reason: Why it is not timed.
        tolerance_share: The largest error, as a share of what the three-way tolerance allows.
        microseconds_20: 20% quantile of a step's time.
        microseconds: Median.
        microseconds_80: 80% quantile.
        ratio: This contender's median by ours: above 1, ours is faster.
        ratio_low: Lower end of its 95% interval.
        ratio_high: Upper end.
        rounds: Samples.
        repetitions: Steps a sample.
        copies: Sets of inputs rotated through.
        tensor_bytes: T, of the input.
        least_bytes: What must move (:func:`batchnorm.bench.limit.least_bytes`).
        copy_microseconds: Median time to copy the input into memory that is there, in the same rounds: 2T move.
        limit_microseconds: The time of the least bytes at the copy's bandwidth.
        times_limit: The step's median by that.
        kept_bytes: Bytes kept between forward and backward pass.
        faults: Page faults a step.
        fault_share: Share of the step's processor time that they took (:func:`batchnorm.bench.faults.fault_share`).
        backend: Which of our kernels served; empty for a peer.
        norm_share: Share of a model's step that its norms take, as given.
        activation_share: The same of activations and sums.
        environment: What it was measured on.
    """

    case: str
    networks: str
    shape: str
    format: str
    dtype: str
    mode: str
    activation: str
    residual: bool
    contender: str
    status: str
    environment: Environment
    reason: str = ""
    tolerance_share: float | None = None
    microseconds_20: float | None = None
    microseconds: float | None = None
    microseconds_80: float | None = None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    rounds: int = 0
    repetitions: int = 0
    copies: int = 0
    tensor_bytes: int | None = None
    least_bytes: int | None = None
    copy_microseconds: float | None = None
    limit_microseconds: float | None = None
    times_limit: float | None = None
    kept_bytes: int | None = None
    faults: float | None = None
    fault_share: float | None = None
    backend: str = ""
    norm_share: float | None = None
    activation_share: float | None = None

    @property
    def operation(self) -> str:
        """The second part of the case's name, such as ``norm+add+relu``."""
        return self.case.split("/")[1] if self.mode != "model" else "model"


def with_times(row: Row, samples: Samples, ours: Samples | None, repetitions: int) -> Row:
    """A row with what its samples say: it is timed now.

    Args:
        row: Of the contender.
        samples: What it took.
        ours: What this library took in the same rounds; None where it was not timed, so that there is no ratio.
        repetitions: Steps a sample.
    """
    spread = quantiles(samples.seconds)
    beside = None if ours is None else ratio_of(samples.seconds, ours.seconds)
    return replace(
        row,
        status=TIMED,
        microseconds_20=1e6 * spread.low,
        microseconds=1e6 * spread.median,
        microseconds_80=1e6 * spread.high,
        ratio=None if beside is None else beside.estimate,
        ratio_low=None if beside is None else beside.low,
        ratio_high=None if beside is None else beside.high,
        rounds=len(samples.seconds),
        repetitions=repetitions,
        faults=samples.spent.faults / samples.calls,
        fault_share=fault_share(samples.spent),
    )


_ENVIRONMENT = [each.name for each in fields(Environment)]
COLUMNS = [each.name for each in fields(Row) if each.name != "environment"] + _ENVIRONMENT


def table(rows: Iterable[Row]) -> str:
    """The rows as CSV; None is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        flat = asdict(row)
        flat |= flat.pop("environment")
        writer.writerow({name: _cell(value) for name, value in flat.items()})
    return text.getvalue()


def _cell(value: object) -> object:
    # Four figures: more would be noise, and a file of a thousand rows is read by people too.
    return "" if value is None else float(f"{value:.4g}") if isinstance(value, float) else value


def write(rows: Iterable[Row], path: Path) -> None:
    """Writes the rows as CSV; a reader never finds half a file."""
    write_whole(path, table(rows))


def read(path: Path) -> list[Row]:
    """Reads what :func:`write` wrote.

    Raises:
        ArgumentError: The file is not such a table.
    """
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != COLUMNS:
            raise ArgumentError(f"{path} is no table of this version's benchmarks.", "name another file.")
        return [_row(cells) for cells in reader]


def _row(cells: dict[str, str]) -> Row:
    environment = Environment(**_values(Environment, {name: cells.pop(name) for name in _ENVIRONMENT}))
    return Row(environment=environment, **_values(Row, cells))


def _values(kind: type, cells: dict[str, str]) -> dict[str, typing.Any]:
    hints = typing.get_type_hints(kind)
    return {name: _value(hints[name], cell) for name, cell in cells.items()}


def _value(hint: typing.Any, cell: str) -> object:
    if isinstance(hint, types.UnionType):
        if not cell:
            return None
        hint = typing.get_args(hint)[0]
    return cell == "True" if hint is bool else hint(cell)


def merged(old: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """The rows of both; where both measured a case with a contender, the new one."""
    found = {(row.case, row.contender): row for row in (*old, *new)}
    return list(found.values())
