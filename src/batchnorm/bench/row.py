"""One measured contender on one case, as a row of data; and the file of such rows."""

from __future__ import annotations

import csv
import io
import types
import typing
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path

from ..errors import ArgumentError
from ..files import write_whole
from .environment import Environment
from .faults import fault_share
from .timing import Samples, quantiles
from .timing import ratio as ratio_of

__all__ = [
    "COPY",
    "INFERENCE",
    "MODEL",
    "TESTS",
    "Environment",
    "Row",
    "merged",
    "read",
    "table",
    "with_times",
    "write",
]

TIMED, WRONG, UNAVAILABLE = "timed", "wrong", "unavailable"
#: Of tests.
PASSED = "passed"
#: The modes of a user's own model: a training step; the forward pass in evaluation, without gradients.
MODEL, INFERENCE = "model", "model inference"
#: Of what is no case: a copy of plain memory; tests that were run first.
COPY, TESTS = "copy", "tests"


@dataclass(frozen=True)
class Row:
    """One contender on one case. What was not measured is None.

    Attributes:
        case: Its name; the target's for a user's own model.
        networks: Where the case occurs, and how often: ``resnet50:6 resnet18:4``.
        shape: Of the input.
        format: ``contiguous`` or ``channels-last``.
        dtype: Of the input.
        mode: See :class:`batchnorm.bench.cases.Case`; ``model`` for a user's training step, ``model inference`` for
            the same model in evaluation.
        activation: What follows the norm.
        residual: Whether a sum does.
        contender: ``batchnorm``, or a peer. Of a model ``fuse``, ``lean`` (with which the fused one trains), ``fold``,
            or a peer.
        status: ``timed``; ``wrong`` where a result broke the tolerance; ``unavailable``. Of tests
            ``passed`` or ``wrong``.
        reason: Why it is not timed.
        tolerance_share: The largest error, as a share of what the three-way tolerance allows.
        microseconds_20: 20% quantile of a step's time.
        microseconds: Median.
        microseconds_80: 80% quantile.
        ratio: This contender's median by ours: above 1, ours is faster. Of a model, ours is ``fuse``, in inference
            ``fold``.
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
        faults: Page faults a step; not on a GPU.
        fault_share: Share of the step's processor time that they took (:func:`batchnorm.bench.faults.fault_share`).
        backend: Which of our kernels served; of eager torch on a GPU, which of torch's; else empty.
        norm_share: Share of a model's step that its norms take, as given.
        activation_share: The same of activations and sums.
        speedup: Of a model: eager torch's median by this contender's; above 1, this one is faster.
        speedup_low: Lower end of its 95% interval.
        speedup_high: Upper end.
        norms_fused: How many norms of a model are computed with what follows.
        norms_replaced: How many are ours, and computed alone.
        norms_folded: How many became part of a layer.
        norms_kept: How many are as they were.
        norms: With what, and why, with the number of norms before it: ``33 fused: relu | 4 replaced: …``.
        max_error: The largest difference from the model as given, in its own dtype; of ``lean``, from ``fuse``.
        max_error_float64: The same in float64, where the model runs in it.
        peak_bytes: On a GPU: the most that was allocated during a step, above what was there before it.
        launches: On a GPU, of tiny inputs: kernels that a step launches.
        host_microseconds: On a GPU: the median time of the processor until a step was enqueued.
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
    speedup: float | None = None
    speedup_low: float | None = None
    speedup_high: float | None = None
    norms_fused: int | None = None
    norms_replaced: int | None = None
    norms_folded: int | None = None
    norms_kept: int | None = None
    norms: str = ""
    max_error: float | None = None
    max_error_float64: float | None = None
    peak_bytes: int | None = None
    launches: float | None = None
    host_microseconds: float | None = None

    @property
    def of_a_model(self) -> bool:
        """Whether it is of a user's own model, and not of a case."""
        return self.mode in (MODEL, INFERENCE)

    @property
    def of_a_case(self) -> bool:
        """Whether it is of a case, and not of a model, of the machine or of its tests."""
        return not self.of_a_model and self.mode not in (COPY, TESTS)

    @property
    def operation(self) -> str:
        """The second part of the case's name, such as ``norm+add+relu``."""
        return self.case.split("/")[1] if self.of_a_case else self.mode


def with_times(row: Row, samples: Samples, ours: Samples | None, repetitions: int, eager: Samples | None = None) -> Row:
    """A row with what its samples say: it is timed now.

    Args:
        row: Of the contender.
        samples: What it took.
        ours: What this library took in the same rounds; None where it was not timed, so that there is no ratio.
        repetitions: Steps a sample.
        eager: What eager torch took, where the row is to say by how much this contender is faster.
    """
    spread = quantiles(samples.seconds)
    beside = None if ours is None else ratio_of(samples.seconds, ours.seconds)
    gain = None if eager is None else ratio_of(eager.seconds, samples.seconds)
    on_gpu = row.environment.device != "cpu"
    return replace(
        row,
        status=TIMED,
        microseconds_20=1e6 * spread.low,
        microseconds=1e6 * spread.median,
        microseconds_80=1e6 * spread.high,
        ratio=None if beside is None else beside.estimate,
        ratio_low=None if beside is None else beside.low,
        ratio_high=None if beside is None else beside.high,
        speedup=None if gain is None else gain.estimate,
        speedup_low=None if gain is None else gain.low,
        speedup_high=None if gain is None else gain.high,
        rounds=len(samples.seconds),
        repetitions=repetitions,
        faults=None if on_gpu else samples.spent.faults / samples.calls,
        fault_share=None if on_gpu else fault_share(samples.spent),
        host_microseconds=1e6 * quantiles(samples.host_seconds).median if on_gpu else None,
    )


_ENVIRONMENT = [each.name for each in fields(Environment)]
COLUMNS = [each.name for each in fields(Row) if each.name != "environment"] + _ENVIRONMENT
# A file may lack what rows got since it was written.
_NEEDED = {
    each.name for each in (*fields(Row), *fields(Environment)) if each.default is MISSING and each.name in COLUMNS
}


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
        if not _NEEDED <= set(reader.fieldnames or ()) <= set(COLUMNS):
            raise ArgumentError(f"{path} is no table of this version's benchmarks.", "name another file.")
        return [_row(cells) for cells in reader]


def _row(cells: dict[str, str]) -> Row:
    environment = Environment(**_values(Environment, {name: cells.pop(name) for name in _ENVIRONMENT if name in cells}))
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
    """The rows of both; where both measured a contender on a case, the new one."""
    found = {(row.case, row.mode, row.contender): row for row in (*old, *new)}
    return list(found.values())
