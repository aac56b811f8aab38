"""Names beside the lines that they name, so that no legend has to be decoded.

Lines often end at nearly the same height. Their names are then moved apart, into a column of their own, and a
thin leader joins each to its line's end.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from ..written import escape
from .axes import Axis, Drawing

__all__ = ["Label", "column", "inside", "peaks", "room", "spread", "wrapped"]

LINE_HEIGHT = 15.0  # pixels of one line of text
_CHARACTER = 8.0  # pixels of a character, on average, in the widest of the usual fonts
_WIDTH = 15  # characters; a name wraps beyond them so that a telephone keeps most of its width
_GUTTER = 24  # pixels between the lines' ends and the names where leaders are drawn
_NARROW = 200  # pixels of a plot on a telephone, between its margins
_SEEN = 7.0  # a name moved by more pixels than this gets a leader


@dataclass(frozen=True)
class Label:
    """A name and the point that it names."""

    text: str
    x: float
    y: float
    color: int

    @property
    def written(self) -> str:
        """The name, wrapped and escaped."""
        return wrapped(self.text, _WIDTH)

    @property
    def height(self) -> float:
        """Pixels from the top of its first line to the bottom of its last."""
        return LINE_HEIGHT * (self.written.count("<br>") + 1) + 1


def wrapped(text: str, width: int, lines: int = 3) -> str:
    """Gives escaped text in lines of at most ``width`` characters; what does not fit is cut and marked."""
    return "<br>".join(escape(part) for part in _lines(text, width, lines))


def _lines(text: str, width: int, lines: int = 3) -> list[str]:
    # "B = 8" is one word to a reader, and textwrap leaves non-breaking spaces alone.
    return textwrap.wrap(text.replace(" = ", "\u00a0=\u00a0"), width, max_lines=lines, placeholder=" …")


def room(labels: Sequence[Label], x_axis: Axis) -> int:
    """Pixels right of the plot that the names need on the narrowest screen."""
    needed = 0.0
    for label in labels:
        longest = max(map(len, _lines(label.text, _WIDTH)))
        needed = max(needed, _CHARACTER * longest + 10 - (1 - x_axis.share(label.x)) * _NARROW)
    return round(max(14.0, needed))


def spread(wanted: Sequence[float], heights: Sequence[float], ceiling: float) -> list[float]:
    """Moves centres (pixels from the bottom) apart until none overlaps, keeping their order."""
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    placed = list(wanted)
    for below, above in pairwise(order):
        placed[above] = max(placed[above], placed[below] + (heights[below] + heights[above]) / 2)
    # Half of what a crowd grew by goes down again, so that it stays around the ends that it names.
    for group in _touching(order, placed, heights):
        excess = sum(placed[index] - wanted[index] for index in group) / len(group)
        for index in group:
            placed[index] -= excess
    # Which may have met those below; and what was pushed past an edge comes back, and pushes what is next to it.
    floor = -8.0
    for index in order:
        placed[index] = max(placed[index], floor + heights[index] / 2)
        floor = placed[index] + heights[index] / 2
    top = ceiling + 8.0
    for index in reversed(order):
        placed[index] = min(placed[index], top - heights[index] / 2)
        top = placed[index] - heights[index] / 2
    return placed


def _touching(order: Sequence[int], placed: Sequence[float], heights: Sequence[float]) -> list[list[int]]:
    groups: list[list[int]] = []
    for index in order:
        last = groups[-1][-1] if groups else None
        if last is not None and placed[index] - placed[last] <= (heights[index] + heights[last]) / 2 + 0.5:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def column(labels: Sequence[Label], x_axis: Axis, y_axis: Axis, pixels: float) -> tuple[list[Drawing], int]:
    """Places names right of their lines' ends; gives them and the pixels that leaders take in the margin."""
    wanted = [y_axis.share(label.y) * pixels for label in labels]
    placed = spread(wanted, [label.height for label in labels], pixels)
    moves = [place - start for place, start in zip(placed, wanted, strict=True)]
    leaders = any(abs(move) > _SEEN for move in moves)
    found = []
    for label, move in zip(labels, moves, strict=True):
        note = _note(label, x_axis, y_axis) | {"xanchor": "left", "yanchor": "middle", "align": "left"}
        if leaders:
            # From the right edge, wherever the line ends: the names of a column start at one place.
            note |= {"showarrow": True, "arrowhead": 0, "arrowwidth": 1, "standoff": 3, "ax": _GUTTER, "ay": -move}
        else:
            note |= {"xshift": 7, "yshift": move}
        found.append(note)
    return found, _GUTTER if leaders else 0


def inside(labels: Sequence[Label], x_axis: Axis, y_axis: Axis, pixels: float) -> list[Drawing]:
    """Places names beside lines that end inside the plot, those of lines that end together apart."""
    found = []
    for place in sorted({round(x_axis.share(label.x), 1) for label in labels}):
        group = [label for label in labels if round(x_axis.share(label.x), 1) == place]
        wanted = [y_axis.share(label.y) * pixels for label in group]
        placed = spread(wanted, [label.height for label in group], pixels)
        side = {"xanchor": "right", "xshift": -7} if place > 0.6 else {"xanchor": "left", "xshift": 7}
        for label, start, end in zip(group, wanted, placed, strict=True):
            beside = {"yanchor": "middle", "align": "left", "yshift": end - start}
            found.append(_note(label, x_axis, y_axis) | side | beside)
    return found


def peaks(labels: Sequence[Label], x_axis: Axis, y_axis: Axis, pixels: float) -> list[Drawing]:
    """Places names above the highest points of histograms, those that would meet one above the other."""
    found: list[Drawing] = []
    taken: list[tuple[float, float, float]] = []  # position along the axis, bottom and top in pixels
    for label in sorted(labels, key=lambda label: y_axis.share(label.y)):
        along = x_axis.share(label.x)
        start = y_axis.share(label.y) * pixels
        bottom = start + 3
        for other, low, high in sorted(taken, key=lambda each: each[1]):
            if abs(along - other) < 0.42 and bottom < high and low < bottom + label.height:
                bottom = high
        taken.append((along, bottom, bottom + label.height))
        anchor = "left" if along < 0.2 else "right" if along > 0.8 else "center"
        note = _note(label, x_axis, y_axis) | {"xanchor": anchor, "yanchor": "bottom", "yshift": bottom - start}
        found.append(note)
    return found


def _note(label: Label, x_axis: Axis, y_axis: Axis) -> Drawing:
    return {
        "x": x_axis.at(label.x),
        "y": y_axis.at(label.y),
        "text": label.written,
        "showarrow": False,
        "meta": {"color": label.color},
    }
