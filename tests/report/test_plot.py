import json
import math
import re
from dataclasses import replace
from itertools import pairwise

import pytest

from batchnorm.report import Chart, Contours, Curves, Intervals, Row, Series
from batchnorm.report.plot import figure
from batchnorm.report.plot.contours import rank
from report.samples import charts

GRID = [float(place) / 10 for place in range(-20, 21)]


def _names(layout: dict, top: float) -> list[tuple[float, float]]:
    """From where to where (pixels from the bottom) each name stands."""
    pixels = layout["height"] - layout["margin"]["t"] - layout["margin"]["b"]
    spans = []
    for note in layout["annotations"]:
        centre = note["y"] / top * pixels + (-note["ay"] if note["showarrow"] else note["yshift"])
        half = 7 * (note["text"].count("<br>") + 1)
        spans.append((centre - half, centre + half))
    return sorted(spans)


@pytest.mark.parametrize("top", [0.5, 1.0])
@pytest.mark.parametrize("end", [0.0, 0.25, 0.5])
def test_names_at_the_ends_do_not_overlap(top: float, end: float) -> None:
    names = ["one", "two", "three", "four", "a label that takes more than one line"]
    lines = [Series(name, [0, 1], [0, end + 1e-3 * place], place) for place, name in enumerate(names)]
    layout = figure(Curves("t", "x", "y", lines, y_range=(0, top)))["layout"]
    spans = _names(layout, top)
    assert len(spans) == len(names)
    assert all(below[1] <= above[0] for below, above in pairwise(spans))
    assert spans[-1][1] <= layout["height"] - layout["margin"]["t"] - layout["margin"]["b"] + 12
    assert spans[0][0] >= -12


def test_a_name_moved_far_has_a_leader_and_others_none() -> None:
    near = [Series("one", [0, 1], [0, 0.5], 1), Series("two", [0, 1], [0, 0.501], 2)]
    far = [Series("one", [0, 1], [0, 0.2], 1), Series("two", [0, 1], [0, 0.8], 2)]
    for lines, leaders in ((near, True), (far, False)):
        notes = figure(Curves("t", "x", "y", lines, y_range=(0, 1)))["layout"]["annotations"]
        assert [note["showarrow"] for note in notes] == [leaders, leaders]


def test_more_names_than_fit_make_the_chart_higher() -> None:
    lines = [Series(f"line number {place} with a name", [0, 1], [0, 1], place) for place in range(20)]
    layout = figure(Curves("t", "x", "y", lines, y_range=(0, 1)))["layout"]
    spans = _names(layout, 1.0)
    assert all(below[1] <= above[0] for below, above in pairwise(spans))
    assert spans[0][0] >= -12


def test_names_of_lines_that_end_together_inside_do_not_overlap() -> None:
    lines = [Series(name, [0, 1], [0, 0.5 + 1e-3 * place], place) for place, name in enumerate(("one", "two", "three"))]
    layout = figure(Curves("t", "x", "y", lines, x_range=(0, 4), y_range=(0, 1)))["layout"]
    spans = _names(layout, 1.0)
    assert len(spans) == 3
    assert all(below[1] <= above[0] for below, above in pairwise(spans))


@pytest.mark.parametrize("chart", charts("<i>x</i>&<br>"), ids=lambda chart: type(chart).__name__)
def test_no_text_of_a_chart_is_markup_to_plotly(chart: Chart) -> None:
    text = json.dumps(figure(chart))
    assert re.sub(r"<br>|</?b>|</?sup>|<extra>|</extra>", "", text).count("<") == 0
    assert "&lt;i&gt;" in text


def test_a_line_without_a_name_has_none() -> None:
    assert figure(Curves("t", "x", "y", [Series("", [0, 1], [0, 1], 1)]))["layout"]["annotations"] == []


def test_points_alone_and_steps_are_drawn_as_such() -> None:
    points = Series("p", [0, 1], [0, 1], 1, line=False)
    steps = Series("s", [0, 1, 2], [1, 3, 0], 2, shape="step", fill=True)
    drawing = figure(Curves("t", "x", "y", [points, steps]))
    assert drawing["data"][0]["mode"] == "markers"
    assert drawing["data"][1]["line"]["shape"] == "hv"
    assert drawing["data"][1]["fill"] == "tozeroy"
    # A filled area stands on the axis, and a histogram's name above its highest bar.
    assert drawing["layout"]["yaxis"]["range"][0] == 0
    assert drawing["layout"]["annotations"][1]["x"] == 1.5
    assert drawing["layout"]["annotations"][1]["y"] == 3


def test_the_axes_are_cut_where_it_is_said() -> None:
    line = Series("a", [0, 10], [0, 10], 1)
    layout = figure(Curves("t", "x", "y", [line], x_range=(2, 5), y_range=(1, 3)))["layout"]
    assert layout["xaxis"]["range"] == [2, 5]
    assert layout["yaxis"]["range"] == [1, 3]


def test_a_band_with_a_gap_is_two_areas() -> None:
    y = [1.0, 2.0, math.nan, 4.0, 5.0]
    band = Series("a", [0, 1, 2, 3, 4], y, 1, [v - 1 for v in y], [v + 1 for v in y])
    areas = [trace for trace in figure(Curves("t", "x", "y", [band]))["data"] if trace["meta"].get("band")]
    assert [area["x"] for area in areas] == [[0, 1, 1, 0], [3, 4, 4, 3]]
    assert areas[0]["y"] == [0, 1, 3, 2]


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (1, 30, ["1", "2", "5", "10", "20"]),
        (0.25, 0.4, ["0.25", "0.3", "0.35", "0.4"]),
        (0.9, 1.24, ["0.9", "0.95", "1", "1.05", "1.1", "1.15", "1.2"]),
        (20, 45, 6),
        (1e-4, 1.0, ["10<sup>−4</sup>", "10<sup>−3</sup>", "10<sup>−2</sup>", "10<sup>−1</sup>", "10<sup>0</sup>"]),
        (1e-12, 1e12, 9),
    ],
)
def test_a_logarithmic_axis_has_readable_ticks(low: float, high: float, ticks: list[str] | int) -> None:
    line = Series("a", [0, 1], [low, high], 1)
    axis = figure(Curves("t", "x", "y", [line], log_y=True, y_range=(low, high)))["layout"]["yaxis"]
    if isinstance(ticks, int):
        assert len(axis["ticktext"]) == ticks
    else:
        assert axis.get("ticktext") == ticks


@pytest.mark.parametrize("log", [False, True])
def test_nothing_to_show_is_an_empty_chart_and_no_error(log: bool) -> None:
    lines = [Series("a", [0, -1], [math.nan, math.inf], 1, [math.nan, 0], [1, math.inf])]
    for series in ([], lines):
        figure(Curves("t", "x", "y", series, log_x=log, log_y=log))
    figure(Intervals("t", "x", [Row("a", math.nan, math.nan, math.nan)], 1.0, "one", log_x=log))
    figure(Intervals("t", "x", [], 1.0, "one", log_x=log))
    flat = [[math.nan] * len(GRID)] * len(GRID)
    figure(Contours("t", "x", "y", "z", GRID, GRID, flat, []))


def test_an_interval_without_end_reaches_the_edge() -> None:
    drawing = figure(Intervals("t", "x", [Row("a", 1, -math.inf, math.inf), Row("b", 2, 0, 4)], 0.0, "none"))
    first = drawing["data"][0]
    low, high = drawing["layout"]["xaxis"]["range"]
    assert first["x"][0] - first["error_x"]["arrayminus"][0] == pytest.approx(low)
    assert first["x"][0] + first["error_x"]["array"][0] == pytest.approx(high)


def _bowl(stretch: float) -> Contours:
    heights = [[x * x + stretch * y * y for x in GRID] for y in GRID]
    paths = [Series("descent", [-1.5, 1.0, 0.0], [1.5, -1.0, 0.0], 2)]
    return Contours("t", "x", "y", "loss", GRID, GRID, heights, [0.1, 0.5, 1, 2, 4, 8, 16], paths)


def test_lines_of_equal_height_lie_at_the_levels() -> None:
    levels = [0.1, 0.5, 1, 2, 4, 8, 16]
    assert [rank(level, levels) for level in levels] == list(range(7))
    values = [rank(value / 10, levels) for value in range(400)]
    assert values == sorted(values)
    surface = figure(_bowl(3))["data"][0]
    assert surface["type"] == "contour"
    assert (surface["contours"]["start"], surface["contours"]["end"], surface["contours"]["size"]) == (0, 6, 1)
    assert surface["z"][20][20] == -0.25  # the bottom, below the lowest level


def test_heights_are_written_on_their_lines_and_off_the_paths() -> None:
    chart = _bowl(3)
    free = figure(replace(chart, paths=()))["layout"]["annotations"]
    # A path right over where the heights would stand.
    over = Series("", [note["x"] for note in free], [note["y"] for note in free], 2)
    moved = figure(replace(chart, paths=[over]))["layout"]["annotations"]
    for notes in (free, moved):
        assert len(notes) >= 3
        for note in notes:
            height = note["x"] ** 2 + 3 * note["y"] ** 2
            assert height == pytest.approx(float(note["text"]), abs=0.03)
    steps = list(zip(over.x, over.y, strict=True))
    assert min(math.dist((note["x"], note["y"]), step) for note in moved for step in steps) > 0.2


def test_paths_have_marks_and_names() -> None:
    drawing = figure(_bowl(1))
    assert drawing["data"][1]["mode"] == "lines+markers"
    name = next(note for note in drawing["layout"]["annotations"] if note["text"] == "descent")
    assert (name["x"], name["y"]) == (-1.5, 1.5)


def test_points_of_each_name_have_a_mark_of_their_own_that_their_name_shows() -> None:
    names = ("one", "two", "three")
    points = [Series(name, [0, 1], [0, place], 1, line=False) for place, name in enumerate(names)]
    points.append(Series("", [0, 1], [0, 1], 1, line=False))  # belongs to the first of its colour
    points.append(Series("joined", [0, 1], [0, 1], 2, markers=True))
    points.append(Series("bare", [0, 1], [0, 1], 3))
    drawing = figure(Curves("t", "x", "y", points))
    marks = [trace["marker"]["symbol"] for trace in drawing["data"]]
    assert marks == ["circle", "circle-open", "square", "circle", "diamond", "circle"]
    written = [note["text"].replace("\u00a0", " ") for note in drawing["layout"]["annotations"]]
    assert written == ["● one", "○ two", "■ three", "joined", "bare"]
    # plotly would give closed marks a dark rim.
    widths = [trace["marker"]["line"]["width"] for trace in drawing["data"]]
    assert [width > 0 for width in widths] == [mark.endswith("-open") for mark in marks]


def test_a_helper_tells_nothing_and_a_line_its_numbers_with_the_names_of_the_axes() -> None:
    lines = [
        Series("a", [0, 1, 2], [-0.123456, math.nan, 3.4e6], 1),
        Series("", [0, 2], [7, 7], 0),
        Series("mean", [0.5, 0.5], [0, 7], 2),
        Series("level", [0, 2], [7, 7], 3),
    ]
    line, helper, upright, flat = figure(Curves("t", "training step", "loss (nats)", lines))["data"]
    assert helper["hoverinfo"] == "skip"
    assert "hovertemplate" not in helper
    assert line["customdata"] == [["0", "−0.1235"], ["1", ""], ["2", "3.4·10⁶"]]
    assert line["hovertemplate"] == ("training step: %{customdata[0]}<br>loss (nats): %{customdata[1]}<extra>a</extra>")
    # Where such a line ends is a matter of drawing.
    assert upright["hovertemplate"] == "training step: %{customdata[0]}<extra>mean</extra>"
    assert flat["hovertemplate"] == "loss (nats): %{customdata[1]}<extra>level</extra>"


def test_a_histogram_tells_its_bars_and_not_their_edges() -> None:
    bars = Series("", [-1, 0, 1], [0.25, 0.75, 0], 1, shape="step", fill=True)
    line, points = figure(Curves("t", "value", "density", [bars]))["data"]
    assert line["hoverinfo"] == "skip"
    assert points["x"] == [-0.5, 0.5]
    assert points["marker"]["opacity"] == 0
    assert points["customdata"] == [["−1 to 0", "0.25"], ["0 to 1", "0.75"]]
    assert points["hovertemplate"].startswith("value: %{customdata[0]}<br>density: %{customdata[1]}")


def test_a_path_without_a_name_tells_nothing() -> None:
    chart = _bowl(1)
    helper = replace(chart.paths[0], label="")
    data = figure(replace(chart, paths=[helper, chart.paths[0]]))["data"]
    assert data[1]["hoverinfo"] == "skip"
    assert data[2]["hovertemplate"].endswith("<extra>descent</extra>")


@pytest.mark.parametrize("chart", charts("a name"), ids=lambda chart: type(chart).__name__)
def test_paper_has_a_lower_frame_of_its_own(chart: Chart) -> None:
    drawing = figure(chart)
    if isinstance(chart, Intervals):
        assert drawing["paper"] == drawing["layout"]
    else:
        assert drawing["paper"]["height"] < drawing["layout"]["height"]
    assert drawing["paper"]["margin"] == drawing["layout"]["margin"]


def test_names_do_not_overlap_on_paper_either() -> None:
    lines = [Series(name, [0, 1], [0, 0.5 + 0.01 * place], place) for place, name in enumerate("abcde")]
    layout = figure(Curves("t", "x", "y", lines, y_range=(0, 1)))["paper"]
    assert all(below[1] <= above[0] for below, above in pairwise(_names(layout, 1.0)))
