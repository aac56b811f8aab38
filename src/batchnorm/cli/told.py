"""What ``batchnorm doctor`` tells: a report, printed or written, and what was mended."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..doctor import Diagnosis
    from .examined import Examination

__all__ = ["Format", "tell"]


class Format(str, Enum):
    """What is written."""

    text = "text"
    json = "json"
    sarif = "sarif"
    html = "html"


def tell(examination: Examination, format: Format, out: Path | None, mended: Sequence[str]) -> None:
    """Writes the report to ``out``, if it goes there, and prints it.

    A reader that has enough (``| head``) ends only the printing.

    Raises:
        OSError: ``out`` cannot be written.
    """
    report = ""
    if format is Format.html:
        assert out is not None
        examination.diagnosis.to_html(out)
    elif out is not None or format is not Format.text:
        report = _report(examination, format)
    if out is not None and format is not Format.html:
        from ..files import write_whole  # noqa: PLC0415 - only where it is asked for

        write_whole(out, f"{report}\n")
    try:
        if out is not None:
            print(f"{_readable(examination.diagnosis)}\nwritten: {out}", flush=True)
        else:
            print(report or _readable(examination.diagnosis), flush=True)
        for line in mended:
            print(line, flush=True, file=sys.stderr if report and out is None else sys.stdout)
    except BrokenPipeError:
        # What is still to be flushed at the end would raise once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _report(examination: Examination, format: Format) -> str:
    import json  # noqa: PLC0415

    from ..doctor.as_sarif import as_sarif  # noqa: PLC0415
    from ..doctor.as_text import as_text  # noqa: PLC0415

    diagnosis = examination.diagnosis
    if format is Format.text:
        return as_text(diagnosis, whole=True, command_line=True)
    content = diagnosis.to_json() if format is Format.json else as_sarif(diagnosis, examination.place)
    return json.dumps(content, indent=2, allow_nan=False)


def _readable(diagnosis: Diagnosis) -> str:
    """In colours on a terminal; elsewhere every finding on its line, and nothing cut."""
    from rich.console import Console  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    from ..doctor.as_text import as_text, report  # noqa: PLC0415

    console = Console()
    if not console.is_terminal:
        return as_text(diagnosis, whole=True, command_line=True)
    styles = {"error": "bold red", "warning": "yellow", "info": "cyan", "layer": "bold", "note": "dim", "": ""}
    with console.capture() as coloured:
        for line in report(diagnosis, command_line=True):
            words = Text.assemble(*((text, styles[kind]) for kind, text in line))
            console.print(words, soft_wrap=True, highlight=False)
    return coloured.get().removesuffix("\n")
