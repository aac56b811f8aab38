import math
import re

import pytest

from batchnorm.report import Contours, Counts, Curves, Intervals, Line, Lines, Panels, Row, Section, Series, render
from batchnorm.report.plot.sketch import sketch
from report.samples import charts, pictures


def test_a_line_leads_to_its_place_and_says_its_fact() -> None:
    line = Line("The claim", "claim", "reproduced", "good", "steps", "2×", "(1 to 3)")
    text = render("t", "l", [Section("s", "s", blocks=(Counts([(3, "held", "good")]), Lines("All", [line], "all")))])
    assert '<section id="s" class="glance">' in text
    assert '<h3 id="all">All</h3>' in text
    assert '<span class="good"><b>3</b> held</span>' in text
    assert '<a href="#claim">The claim</a> <span class="badge good">reproduced</span>' in text
    assert 'steps: <b>2×</b> <span class="rest">(1 to 3)</span>' in text
    assert 'class="sketch"' not in text


def test_every_chart_has_an_outline_within_the_sketch() -> None:
    for chart in [*charts("a"), Panels("p", charts("a")[1:])]:
        small = sketch(chart)
        assert small is not None
        assert small.series
        for series in small.series:
            for values in (series.x, series.y):
                assert all(math.isnan(value) or 0 <= value <= 1 for value in values)
    assert sketch(pictures("a")) is None
    assert sketch(Panels("p", [])) is None
    assert sketch(Contours("t", "x", "y", "z", [0, 1], [0, 1], [[0, 1], [1, 2]], [1])) is None


def test_the_outline_is_of_the_lines_that_have_names() -> None:
    seeds = [Series("", [0, 1], [0, seed], 0) for seed in range(5)]
    mean = Series("mean", [0, 1], [0, 2], 1, low=[0, 1], high=[0, 3])
    named = sketch(Curves("t", "x", "y", [*seeds, mean]))
    assert named is not None
    assert [series.color for series in named.series] == [1]
    bare = sketch(Curves("t", "x", "y", seeds))
    assert bare is not None
    assert len(bare.series) == 5


def test_intervals_are_outlined_on_their_scale_from_top_to_bottom() -> None:
    rows = [Row("a", 10, 1, 100), Row("b", math.nan, math.nan, math.nan), Row("c", 1, -math.inf, math.inf)]
    small = sketch(Intervals("t", "x", rows, 1.0, "none", log_x=True))
    assert small is not None
    reference, first, middle, last, _ = small.series
    assert reference.dash == "dot"
    assert middle.x[0] == pytest.approx(sum(first.x) / 2)  # the middle of a logarithmic interval
    assert first.y[0] > last.y[0]
    assert list(last.x) == [0, 1]


def test_the_sketch_is_not_heard_twice() -> None:
    text = render("t", "l", [Section("s", blocks=(Lines("All", [Line("a", "b", picture=charts("a")[0])]),))])
    assert re.search(r'<div class="sketch" aria-hidden="true"><svg', text)
