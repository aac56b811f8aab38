"""Numbers as people read them: no "1e-05", a true minus sign, and thousands apart."""

from __future__ import annotations

import math

__all__ = ["power", "signed", "spoken"]

# From 10⁻³ up to 10⁵ digits are shorter than a power of ten, and easier to compare.
_LOWEST, _HIGHEST = -3, 4
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def spoken(value: float, figures: int = 3, *, zeros: bool = False) -> str:
    """Gives a number in plain digits, or as a power of ten where it is very small or large.

    Digits before the decimal point are never rounded away: a count of 2,943 stays one.

    Args:
        value: The number.
        figures: Significant figures.
        zeros: Whether zeros at the end are kept, as in a column of numbers of equal precision.

    >>> spoken(-0.19321), spoken(2943), spoken(1e-5), spoken(3.468e6), spoken(float("inf"))
    ('−0.193', '2,943', '10⁻⁵', '3.47·10⁶', '∞')
    >>> spoken(1.5, 4, zeros=True), spoken(1e-5, 2, zeros=True)
    ('1.500', '1.0·10⁻⁵')
    """
    if math.isnan(value):
        return "no number"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    # Rounded first: 99,999.9 to three figures is 10⁵.
    digits, exponent = f"{value:.{figures - 1}e}".split("e")
    place = int(exponent)
    if _LOWEST <= place <= _HIGHEST:
        return _trimmed(f"{value:,.{max(0, figures - 1 - place)}f}", zeros).replace("-", "−")
    return power(_trimmed(digits, zeros), f"10{str(place).translate(_SUPERSCRIPTS)}")


def signed(value: float, places: int = 2) -> str:
    """Gives a difference: its sign always, and so many places after the decimal point.

    >>> signed(0.5), signed(-1.25, 1), signed(float("inf"))
    ('+0.50', '−1.2', '+∞')
    """
    return f"{value:+.{places}f}".replace("-", "−").replace("inf", "∞").replace("+nan", "no number")


def power(digits: str, ten: str) -> str:
    """Gives digits times a power of ten, however that is written; 1 times it is the power alone.

    >>> power("1", "10⁶"), power("-1", "10⁶"), power("2", "10⁶")
    ('10⁶', '−10⁶', '2·10⁶')
    """
    written = digits.replace("1", ten) if digits in ("1", "-1") else f"{digits}·{ten}"
    return written.replace("-", "−")


def _trimmed(digits: str, zeros: bool) -> str:
    return digits if zeros or "." not in digits else digits.rstrip("0").rstrip(".")
