import math
import re

import pytest

from batchnorm.report import Entries, Entry, Section, Series, Small, Table, render
from batchnorm.report.plot.small import svg
from report.samples import EVIL, entries


def drawn(*series: Series) -> list[tuple[str, str]]:
    """Class and path of all that is drawn between 0 and 6 across and 0 and 3 up."""
    return re.findall(r'<path class="(.*?)" d="(.*?)"/>', svg(Small("t", "w", series, (0, 6), (0, 3))))


def test_a_line_goes_by_steps_and_leaves_gaps() -> None:
    line = Series("", [0, 6, math.nan, 3, 6], [0, 3, 1, 1.5, 0], 1, dash="dash")
    assert drawn(line) == [("c1 dash", "M0 300l600 -300M300 150l300 150")]


def test_a_histogram_stands_on_zero() -> None:
    bars = Series("", [0, 0, 3, 6], [0, 3, 1.5, 0], 2, shape="step", fill=True)
    outline = "M0 300v-300h300v150h300v150"
    assert drawn(bars) == [("area c2", f"{outline}V300H0z"), ("c2", outline)]


def test_points_beyond_the_edges_stand_at_the_edge() -> None:
    points = Series("", [-9, 3, math.inf, 3], [0, 9, -math.inf, math.nan], 3, line=False)
    assert drawn(points) == [("dots c3", "M0 300h0M300 0h0M600 300h0")]


def test_nothing_is_drawn_of_nothing() -> None:
    assert drawn(Series("", [], [], 1), Series("", [math.nan], [1], 1, line=False)) == []


def test_a_picture_is_told_and_says_where_there_is_none() -> None:
    small = Small("title", "words & numbers", [Series("", [0, 1], [0, 1], 1)], caption=("one", "two"))
    text = render("t", "l", [Section("s", blocks=(Entries([Entry("a", "b", pictures=(small,))]),))])
    assert 'role="img" aria-label="words &amp; numbers"' in text
    assert "one<br>two" in text
    empty = Small("title", "", empty="nothing came")
    text = render("t", "l", [Section("s", blocks=(Entries([Entry("a", "b", pictures=(empty,))]),))])
    assert "nothing came" in text
    assert "<svg" not in text


@pytest.mark.parametrize(("marked", "box"), [((True, False), True), ((True, True), False), ((False, False), False)])
def test_the_marked_ones_can_be_asked_for_where_that_makes_a_difference(marked: tuple[bool, bool], box: bool) -> None:
    listed = Entries([Entry("a", f"e{number}", marked=each) for number, each in enumerate(marked)], only="Only these")
    text = render("t", "l", [Section("s", blocks=(listed,))])
    assert ("Only these (1 of 2)" in text) is box


def test_names_are_escaped_and_paths_may_break_behind_their_dots() -> None:
    text = render("t", "l", [Section("s", blocks=(entries(EVIL),))])
    # The script that folds the contents is left out with them: the data, plotly's place and the page's own are left.
    assert text.count("<script") == 3
    assert "<img" not in text
    table = Table(("layer",), [("a.b",)], links=["x"])
    assert '<a href="#x">a.<wbr>b</a>' in render("t", "l", [Section("s", blocks=(table,))])


def test_a_page_without_charts_needs_no_plotly() -> None:
    assert len(render("t", "l", [Section("s", blocks=(entries("a name"),))])) < 50_000
