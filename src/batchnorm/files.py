"""Files that are whole: their former or their new content."""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

__all__ = ["whole", "write_whole"]

# Short, whatever the file is called: names may have 255 bytes.
_ASIDE = ".batchnorm."

# Standard output and standard error.
_PRINTED = (1, 2)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file beside a path, to be written by others: it takes the path's place at the end, on an exception it goes.

    Of a link the file that it leads to is written. What is no file (a pipe, a device) stays what it is, and is written
    into at the end.
    """
    into = _stream(path)
    target = _target(path)
    with tempfile.TemporaryDirectory(dir=None if into is not None else target.parent, prefix=_ASIDE) as folder:
        aside = Path(folder) / path.name
        yield aside
        if into is None:
            aside.replace(target)
        else:
            with aside.open("rb") as file, os.fdopen(_opened(into), "wb") as stream:
                shutil.copyfileobj(file, stream)


def write_whole(path: Path, text: str) -> None:
    """Writes a file such that, whatever happens in between, its former or its new content stands there whole.

    Links, and what is no file, as by :func:`whole`.
    """
    # Names that others gave may hold what no encoding has: it is written as \udc80.
    as_text = partial(os.fdopen, mode="w", encoding="utf-8", errors="backslashreplace")
    into = _stream(path)
    if into is not None:
        with as_text(_opened(into)) as file:
            file.write(text)
        return
    target = _target(path)
    handle, aside = tempfile.mkstemp(dir=target.parent, prefix=_ASIDE, suffix=".part")
    try:
        with as_text(handle) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files for the owner alone; a page is to be read by whom the folder allows.
        umask = os.umask(0)
        os.umask(umask)
        Path(aside).chmod(0o666 & ~umask)
        Path(aside).replace(target)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise


def _target(path: Path) -> Path:
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def _stream(path: Path) -> Path | int | None:
    """What can be written into but not replaced: a pipe, a device, or the file that this process prints into."""
    if not path.exists():
        return None
    there = path.stat()
    if stat.S_ISDIR(there.st_mode):
        raise IsADirectoryError(f"{path} is a folder")
    own = next((number for number in _PRINTED if _is_open(number, there)), None)
    return own or (None if stat.S_ISREG(there.st_mode) else path)


def _is_open(number: int, there: os.stat_result) -> bool:
    try:
        return os.path.samestat(there, os.fstat(number))
    except OSError:
        return False


def _opened(into: Path | int) -> int:
    if isinstance(into, Path):
        return os.open(into, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return os.dup(into)
