import math

import pytest

from batchnorm.report import Chart, Contours, Curves, Intervals, Row, Section, Series, render
from batchnorm.report.chart import Panels
from batchnorm.report.description import described
from report.samples import LONG, charts

LINES = [
    Series("with", [0, 100], [10, 93.14], 1),
    Series("", [0, 100], [50, 50], 0),
    Series("dots", [0, 1, 2], [3, -4, 2], 2, line=False),
    Series("bars", [0, 1, 2], [0.1, 0.4, 0], 3, shape="step"),
    Series("mean", [0.5, 0.5], [0, 7], 4),
    Series("nothing", [0, 1], [math.nan, math.nan], 5),
]


def test_lines_are_told_by_their_ends_and_helpers_are_not() -> None:
    text = described(Curves("It grows", "steps", "accuracy (%)", LINES), "Two of a kind")
    assert text == (
        "Two of a kind. It grows. Across: steps; up: accuracy (%). with: 93.1 at 100. dots: points between −4 and 3. "
        "bars: highest, 0.4, from 1. mean: at 0.5."
    )


def test_intervals_are_told_row_by_row() -> None:
    rows = [Row("one", 0.5, 0.25, math.inf), Row("two", math.nan, math.nan, math.nan)]
    text = described(Intervals("Effects", "ratio", rows, 1.0, "no effect"))
    assert text == ("Effects. Axis: ratio. one: 0.5, interval 0.25 to ∞. two: no number. Dotted line at 1: no effect.")


def test_a_surface_is_told_with_its_paths() -> None:
    path = Series("descent", [-4, 0], [4, 0], 2)
    text = described(Contours("A valley", "a", "b", "loss", [0, 1], [0, 1], [[0, 1], [1, 2]], [1], [path]))
    assert text == "A valley. Across: a; up: b. Heights: loss. descent: from (−4, 4) to (0, 0)."


@pytest.mark.parametrize("chart", charts(LONG * 5), ids=lambda chart: type(chart).__name__)
def test_what_is_told_stays_short_enough_to_listen_to(chart: Chart) -> None:
    assert len(described(chart)) < 1000
    many = [Series(f"line {number}", [0, 1], [0, number], 1) for number in range(30)]
    assert described(Curves("t", "x", "y", many)).endswith("And 22 more.")


def test_every_chart_of_a_page_has_its_words() -> None:
    panels = Panels("Both", [Curves("left", "x", "y", LINES[:1]), Curves("right", "x", "y", LINES[:1])])
    text = render("t", "l", [Section("s", blocks=(panels,))])
    for name in ("left", "right"):
        assert f'aria-label="Both. {name}. Across: x; up: y. with: 93.1 at 100."' in text
