"""Figures as files, SVG or PNG, for slides and documents: drawn by matplotlib, so that no browser is needed.

A chart is laid out once, by :mod:`batchnorm.report.plot`: what is drawn here has the lines, names and colours of the
page. The same figure gives the same file, byte for byte, with the same version of matplotlib.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from ...files import whole
from ..chart import Figure
from .sheet import sheet

__all__ = ["KINDS", "picture", "save_picture"]

#: The kinds of files, by their endings.
KINDS = ("svg", "png")

_DOTS = 2.4  # of a PNG for each pixel of the page: 1920 across


def picture(figure: Figure, kind: str, *, transparent: bool = False) -> bytes:
    """Gives a figure as a file's content.

    Args:
        figure: What is drawn.
        kind: One of :data:`KINDS`.
        transparent: Whether the ground shows what is below it; white otherwise.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
        ValueError: If it is another kind.
    """
    if kind not in KINDS:
        raise ValueError(f"a picture is one of {', '.join(KINDS)}, not {kind!r}")
    import matplotlib as mpl  # noqa: PLC0415 - a tool: only pictures need it

    settings: dict[Any, Any] = {
        # Text stays text, in the reader's font; and names within the file do not change from time to time.
        "svg.fonttype": "none",
        "svg.hashsalt": "batchnorm",
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans", "Verdana", "sans-serif"],
        # A dollar sign is one, and begins no formula.
        "text.parse_math": False,
    }
    file = io.BytesIO()
    with mpl.rc_context(settings):
        drawn = sheet(figure)
        # No date, no version: they would make each file another one.
        metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
        drawn.savefig(
            file,
            format=kind,
            dpi=72 * (1 if kind == "svg" else _DOTS),
            transparent=transparent,
            facecolor="none" if transparent else "white",
            metadata=metadata,
        )
    return file.getvalue()


def save_picture(figure: Figure, path: str | Path, *, transparent: bool = False) -> Path:
    """Writes a figure into a file of the kind that its name ends in, ``.svg`` or ``.png``; gives its path.

    Args:
        figure: What is drawn.
        path: Where to; its folder is made.
        transparent: Whether the ground shows what is below it; white otherwise.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
        ValueError: If the name ends otherwise.
    """
    path = Path(path)
    content = picture(figure, path.suffix.lower().removeprefix("."), transparent=transparent)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as aside:
        aside.write_bytes(content)
    return path
