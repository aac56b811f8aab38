import math
import re

import pytest

from batchnorm.report import spoken


@pytest.mark.parametrize(
    ("value", "figures", "text"),
    [
        (0.0, 3, "0"),
        (-0.0, 3, "0"),
        (1.0, 3, "1"),
        (-0.19321, 3, "−0.193"),
        (2943.2, 3, "2,943"),
        (60_000, 2, "60,000"),
        (99_999.6, 3, "10⁵"),
        (3.468e6, 3, "3.47·10⁶"),
        (-1e6, 3, "−10⁶"),
        (0.001, 3, "0.001"),
        (0.00099999, 3, "0.001"),
        (1e-5, 3, "10⁻⁵"),
        (-1.24e-12, 2, "−1.2·10⁻¹²"),
        (math.inf, 3, "∞"),
        (-math.inf, 3, "−∞"),
        (math.nan, 3, "no number"),
    ],
)
def test_a_number_is_written_as_people_write_it(value: float, figures: int, text: str) -> None:
    assert spoken(value, figures) == text


def test_zeros_at_the_end_are_kept_where_they_are_wanted() -> None:
    numbers = [spoken(value, 4, zeros=True) for value in (1.5, 10, 1e-5, 0)]
    assert numbers == ["1.500", "10.00", "1.000·10⁻⁵", "0"]


@pytest.mark.parametrize("exponent", range(-12, 12))
def test_what_is_written_is_the_number_to_the_figures_that_are_asked_for(exponent: int) -> None:
    back = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
    for digits in (1.0, 2.345, 9.9949, 9.9951):
        value = digits * 10.0**exponent
        found = re.fullmatch(r"(?:([0-9.,]+)|(?:([0-9.]+)·)?10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+))", spoken(value, 3))
        assert found is not None
        plain, first, power = found.groups()
        read = float(plain.replace(",", "")) if plain else float(first or 1) * 10.0 ** int(power.translate(back))
        assert read == pytest.approx(value, rel=6e-3)
