"""An interrupt wherever code may be when it comes."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def interrupted_at(line: int, files: Collection[str | None], *, but: Collection[str] = ()) -> Iterator[None]:
    """Raises ``KeyboardInterrupt`` before this one of the lines that run in the files, some functions left out."""
    run = -1

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal run
        if frame.f_code.co_filename not in files or frame.f_code.co_name in but:
            return None
        if event == "line":
            run += 1
            if run == line:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)
