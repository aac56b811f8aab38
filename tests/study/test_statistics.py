import math

import pytest

from batchnorm.study.statistics import interval, paired


def test_the_interval_is_students_t() -> None:
    # t(4, 0.975) = 2.7764451; the sample's standard deviation is √2.5.
    found = interval([1.0, 2.0, 3.0, 4.0, 5.0])
    half = 2.7764451 * math.sqrt(2.5) / math.sqrt(5)
    assert found.estimate == 3.0
    assert found.low == pytest.approx(3 - half, rel=1e-6)
    assert found.high == pytest.approx(3 + half, rel=1e-6)


def test_pairing_removes_what_both_arms_share() -> None:
    control = [0.0, 100.0, -50.0, 7.0]
    found = paired([value + 1 for value in control], control)
    assert (found.low, found.estimate, found.high) == (1.0, 1.0, 1.0)


def test_one_value_has_no_interval() -> None:
    found = interval([2.0])
    assert (found.low, found.high) == (-math.inf, math.inf)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf, 1.0]])
def test_what_is_not_finite_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        interval(values)


def test_a_pair_that_is_missing_is_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        paired([1.0], [1.0, 2.0])


def test_ratios_are_the_exponential_of_logarithms() -> None:
    found = interval([math.log(2), math.log(2)]).exponential()
    assert found.estimate == pytest.approx(2)
    assert found.low == pytest.approx(2)
