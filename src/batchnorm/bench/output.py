"""What a benchmark leaves: the rows, and the page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import ArgumentError
from ..files import write_whole
from .row import Row, table
from .row import write as write_rows

__all__ = ["check", "write"]


def check(out: Path) -> None:
    """Makes the folder, before anything is measured that could then not be written.

    Args:
        out: A ``.csv`` file, or a folder.

    Raises:
        ArgumentError: It is neither.
        OSError: The folder cannot be made.
    """
    if out.suffix and out.suffix != ".csv" and not out.is_dir():
        raise ArgumentError(f"{out} is neither a .csv file nor a folder.", "name one of the two.")
    (out.parent if out.suffix == ".csv" else out).mkdir(parents=True, exist_ok=True)


def write(rows: Sequence[Row], out: Path) -> Path:
    """Writes the rows, and into a folder the page as well: ``bench.csv`` and ``index.html``.

    Args:
        rows: At least one.
        out: See :func:`check`.

    Returns:
        The file to look at.
    """
    if out.suffix == ".csv":
        write_rows(rows, out)
        return out
    from .page import page  # noqa: PLC0415 - what it is made with is large, and only a folder needs it

    text = page(rows)
    write_whole(out / "bench.csv", table(rows))
    write_whole(out / "index.html", text)
    return out / "index.html"
