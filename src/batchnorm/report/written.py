"""Text as it stands in a page: what is markup, and what would turn the text around it, is written out."""

from __future__ import annotations

import html
import re

__all__ = ["escape"]

# Control characters but tabs and ends of lines, and those that set the direction in which text runs.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def escape(text: str) -> str:
    r"""Gives text as markup that shows it.

    A character that is not seen is written as in Python, so that code with it can be typed as it stands.

    >>> escape("a<b> \u202ename")
    'a&lt;b&gt; \\u202ename'
    """
    return html.escape(_UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text))
