"""Where records go: TensorBoard, whatever has its methods, or a function."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np

from ..errors import ArgumentError
from .record import Record

__all__ = ["Sink", "Writer", "scalars", "sink_of", "write"]

Sink: TypeAlias = Callable[[Record], object]

#: Of a histogram. TensorBoard draws 30; the 1549 that its writer makes otherwise take 7 times as long (1.9 ms each).
BINS = 30


@runtime_checkable
class Writer(Protocol):
    """What ``torch.utils.tensorboard.SummaryWriter`` has, and others have as well."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> Any:
        """One value of a chart."""

    def add_histogram(self, tag: str, values: np.ndarray[Any, Any], global_step: int) -> Any:
        """One row of histograms."""


def sink_of(writer: object) -> Sink:
    """The function that takes records.

    Raises:
        ArgumentError: The writer is neither a writer nor a function.
    """
    if isinstance(writer, Writer):
        return lambda record: write(record, writer)
    if callable(writer):
        return writer
    raise ArgumentError(
        f"a {type(writer).__name__} has no add_scalar and add_histogram, and is no function.",
        "give a SummaryWriter, or a function that takes a record.",
    )


def scalars(record: Record) -> Iterator[tuple[str, float]]:
    """All numbers of a record with their tags: the summary's together, those of layers by what they are."""
    for name, value in record.summary.items():
        yield f"batchnorm/{name}", value
    for path, values in record.layers.items():
        for name, value in values.items():
            yield f"batchnorm_{name}/{path}", value


def write(record: Record, writer: Writer) -> None:
    """Numbers and histograms; where the writer takes text, which layers the summary's values are of."""
    torchs: Any = sys.modules.get("torch.utils.tensorboard.writer")
    if torchs is not None and type(writer) is torchs.SummaryWriter:
        _write_at_once(record, writer)
    else:
        for tag, value in scalars(record):
            writer.add_scalar(tag, value, record.step)
        bins = {"bins": BINS} if "bins" in inspect.signature(writer.add_histogram).parameters else {}
        for tag, values in _histograms(record):
            writer.add_histogram(tag, values, record.step, **bins)
    add_text = getattr(writer, "add_text", None)
    if add_text is not None:
        add_text("batchnorm/worst", _table(record), record.step)


def _histograms(record: Record) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    for name, parameters in (("gamma", record.gamma), ("beta", record.beta)):
        for path, values in parameters.items():
            finite = values[np.isfinite(values)]  # others have no place in a histogram; they are counted
            if len(finite):
                yield f"batchnorm_{name}/{path}", finite


def _write_at_once(record: Record, writer: Any) -> None:
    """As one event: each of its own is handed to another thread, which takes five times as long as what is in it."""
    from torch.utils.tensorboard.summary import histogram_raw, scalar  # noqa: PLC0415 - where the writer comes from

    parts = [scalar(tag, value) for tag, value in scalars(record)]
    parts += [histogram_raw(tag, *_counted(values)) for tag, values in _histograms(record)]
    summary: Any = type(parts[0])()
    for part in parts:
        summary.value.extend(part.value)
    writer._get_file_writer().add_summary(summary, record.step)


def _counted(values: np.ndarray[Any, Any]) -> tuple[Any, ...]:
    """Least, largest, number, sum and sum of squares, upper edges and counts; np.histogram takes 100 µs more."""
    low, high = float(values.min()), float(values.max())
    width = (high - low) / BINS or max(abs(low), 1.0) / BINS
    places = np.minimum(((values - low) / width).astype(np.int64), BINS - 1)
    # TensorBoard's first bin begins where an edge says so: an empty one before it, as its own writer has.
    edges = low + width * np.arange(BINS + 1)
    counts = np.bincount(places, minlength=BINS)
    return low, high, len(values), float(values.sum()), float(values @ values), edges.tolist(), [0, *counts.tolist()]


def _table(record: Record) -> str:
    rows = [f"| {name} | {record.summary[name]:.3g} | `{path}` |" for name, path in record.worst.items()]
    troubles = [f"- {trouble}" for trouble in record.troubles]
    return "\n".join(["| | worst | layer |", "|---|---|---|", *rows, "", *troubles])
