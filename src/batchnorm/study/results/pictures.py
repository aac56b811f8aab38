"""Every picture of a study as a file, for slides and documents."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ...report import save_picture
from ..engine import Outcome
from ..registry import registered

__all__ = ["write_pictures"]

_WORDS = 6  # of a picture's title, in the name of its file


def write_pictures(outcomes: Sequence[Outcome], folder: Path, kind: str | None) -> list[Path]:
    """Writes ``pictures/CLAIM-1-first-words-of-its-title.svg`` and so on; gives the paths.

    Pictures of a study that was there before, of any claim and kind, are removed: they would not fit the page.

    Args:
        outcomes: The claims with their charts.
        folder: The study's.
        kind: ``svg`` or ``png``; None writes none.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
    """
    found = []
    if kind:
        _remove_old(folder / "pictures")
    for outcome in outcomes if kind else ():
        for number, chart in enumerate(outcome.conclusion.charts, 1):
            name = "-".join([outcome.claim.id, str(number), *_words(chart.title)])
            found.append(save_picture(chart, folder / "pictures" / f"{name}.{kind}"))
    return found


def _remove_old(folder: Path) -> None:
    claims = "|".join(map(re.escape, registered()))
    name = re.compile(rf"(?:{claims})-[0-9]+(?:-[a-z0-9]+){{0,{_WORDS}}}\.(?:svg|png)")
    for path in folder.iterdir() if folder.is_dir() else ():
        if name.fullmatch(path.name) and path.is_file():
            path.unlink()


def _words(title: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", title.lower())[:_WORDS]
