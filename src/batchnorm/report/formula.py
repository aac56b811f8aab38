"""Formulas in LaTeX as MathML, which browsers draw themselves: no script, no fonts, and print is sharp."""

from __future__ import annotations

import re
from collections.abc import Iterator
from xml.etree import ElementTree

__all__ = ["mathml"]

_NAMESPACE = "{http://www.w3.org/1998/Math/MathML}"
# What may stand in a page. The converter copies its input into \text and has commands for links and styles.
_ELEMENTS = re.compile(
    "math|mfrac|mi|mn|mo|mover|mpadded|mphantom|mroot|mrow|mspace|msqrt|mstyle|msub|msubsup|msup|mtable|mtd|mtext|"
    "mtr|munder|munderover"
)
_ATTRIBUTES = re.compile(
    "accent|accentunder|columnalign|columnlines|columnspacing|depth|display|displaystyle|fence|form|height|largeop|"
    "linebreak|linethickness|lspace|mathcolor|mathsize|mathvariant|maxsize|minsize|movablelimits|rowlines|rowspacing|"
    "rspace|scriptlevel|separator|stretchy|symmetric|voffset|width"
)
_TOKEN = re.compile(r"\\[A-Za-z]+|\\.|[{}]|[^\\{}]+", re.DOTALL)
_DEEPER = {"{": 1, "}": -1, r"\left": 1, r"\right": -1, r"\begin": 1, r"\end": -1}


def mathml(latex: str) -> str:
    r"""Gives a formula as markup: a part for each stretch between ``\qquad``, which may stand below each other.

    Browsers do not break formulas, and a telephone is narrow: two statements side by side are put into one
    formula with ``\qquad`` between them.

    Raises:
        ModuleNotFoundError: If latex2mathml is not installed.
        ValueError: If the text is no formula, or asks for more than drawing.
    """
    return "".join(f'<span class="part">{_converted(part)}</span>' for part in _parts(latex))


def _parts(latex: str) -> Iterator[str]:
    depth, part = 0, ""
    for token in _TOKEN.findall(latex):
        depth += _DEEPER.get(token, 0)
        if token == r"\qquad" and depth == 0:
            yield part
            part = ""
        else:
            part += token
    if depth:
        raise ValueError(f"no formula: {latex!r} opens and closes unequally")
    yield part


def _converted(latex: str) -> str:
    from latex2mathml.converter import convert  # noqa: PLC0415 - only a page with formulas needs it

    try:
        markup = convert(latex.strip(), display="block")
        root = ElementTree.fromstring(markup)
    except Exception as error:  # its errors have no common base, and some are those of str and list
        raise ValueError(f"no formula: {latex!r} ({type(error).__name__}: {error})") from error
    for element in root.iter():
        name = element.tag.removeprefix(_NAMESPACE)
        if not _ELEMENTS.fullmatch(name) or not all(map(_ATTRIBUTES.fullmatch, element.attrib)):
            raise ValueError(f"no formula: {latex!r} makes <{name}> with {sorted(element.attrib)}")
        if (element.text or "").startswith("\\"):
            raise ValueError(f"no formula: {latex!r} has a command that is not known, {element.text}")
    return markup
