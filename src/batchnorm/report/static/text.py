"""Texts that were written for plotly, as matplotlib draws them."""

from __future__ import annotations

import html
import re
import textwrap

__all__ = ["plain", "wrapped"]

_POWER = re.compile(r"<sup>(.*?)</sup>")
_RAISED = str.maketrans("-−0123456789", "⁻⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
# Of a letter's height, its width on average; matplotlib's own font is the widest of the usual ones.
_WIDE, _WIDE_BOLD = 0.58, 0.66


def plain(text: str) -> str:
    r"""Gives text without markup: lines apart, powers raised, and what was written out as it was.

    >>> plain("B = 8<br>a &lt; 10<sup>−3</sup>")
    'B = 8\na < 10⁻³'
    """
    raised = _POWER.sub(lambda found: found[1].translate(_RAISED), text)
    return html.unescape(re.sub(r"</?b>", "", raised).replace("<br>", "\n"))


def wrapped(text: str, pixels: float, size: float, *, bold: bool = False) -> str:
    """Gives text in lines that fit into so many pixels, in letters of that size."""
    return textwrap.fill(text, max(10, int(pixels / ((_WIDE_BOLD if bold else _WIDE) * size))))
