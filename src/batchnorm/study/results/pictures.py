"""Every picture of a study as a file, for slides and documents."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ...report import save_picture
from ..engine import Outcome

__all__ = ["write_pictures"]

_WORDS = 6  # of a picture's title, in the name of its file


def write_pictures(outcomes: Sequence[Outcome], folder: Path, kind: str | None) -> list[Path]:
    """Writes ``pictures/CLAIM-1-first-words-of-its-title.svg`` and so on; gives the paths.

    Args:
        outcomes: The claims with their charts.
        folder: The study's.
        kind: ``svg`` or ``png``; None writes none.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
    """
    found = []
    for outcome in outcomes if kind else ():
        for number, chart in enumerate(outcome.conclusion.charts, 1):
            name = "-".join([outcome.claim.id, str(number), *_words(chart.title)])
            found.append(save_picture(chart, folder / "pictures" / f"{name}.{kind}"))
    return found


def _words(title: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", title.lower())[:_WORDS]
