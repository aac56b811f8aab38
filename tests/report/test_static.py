import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from batchnorm.report import Curves, Figure, Intervals, Panels, Row, Series, picture, save_picture, static
from batchnorm.report.palette import LIGHT
from batchnorm.report.plot import figure as laid_out
from report.samples import EVIL, LONG, charts, pictures

SVG = "{http://www.w3.org/2000/svg}"


def _figures(name: str) -> list[Figure]:
    return [*charts(name), Panels(name, [charts(name)[1], charts(name)[4]], note=name), pictures(name)]


def _texts(content: bytes) -> list[str]:
    return ["".join(text.itertext()).strip() for text in ElementTree.fromstring(content).iter(f"{SVG}text")]


@pytest.mark.parametrize("number", range(7))
def test_every_figure_is_drawn_the_same_each_time_and_its_text_is_text(number: int) -> None:
    content = picture(_figures(EVIL)[number], "svg")
    assert content == picture(_figures(EVIL)[number], "svg")
    words = " ".join(_texts(content))
    assert "alert('x')" in words
    root = ElementTree.fromstring(content)
    assert not [element for element in root.iter() if element.tag.endswith(("script", "foreignObject"))]
    assert b"evil.example/x" in content  # as text: nothing refers to it
    assert not [value for element in root.iter() for value in element.attrib.values() if "evil" in value]


def test_lines_have_the_names_and_colours_of_the_page() -> None:
    chart = Curves(
        "Cost in $ or in $", "steps", "loss", [Series("with norm", [0, 1], [0, 1], 1), Series("b", [0, 1], [1, 0], 2)]
    )
    content = picture(chart, "svg")
    assert {"Cost in $ or in $", "steps", "loss", "with norm", "b"} <= set(_texts(content))
    for color in LIGHT[1:3]:
        assert color.lower().encode() in content.lower()
    # As long as the page is wide, and high enough.
    _, _, width, height = map(float, re.findall(rb'viewBox="([\d. ]+)"', content)[0].split())
    assert width == 800
    assert 350 < height < 600


def test_names_of_intervals_stand_at_the_left_on_every_scale() -> None:
    for log in (False, True):
        chart = Intervals("t", "x", [Row("the first", 2, 1, 4)], 1.0, "none", log_x=log)
        text = next(
            each
            for each in ElementTree.fromstring(picture(chart, "svg")).iter(f"{SVG}text")
            if "first" in "".join(each.itertext())
        )
        places = re.findall(r"translate\(([\d.]+)", text.get("transform", "")) or [text.get("x", "nan")]
        assert float(places[0]) < 60


def test_the_reference_is_drawn_beside_intervals_and_not_through_their_names() -> None:
    chart = Intervals("t", "x", [Row("the first", 2, 1, 4), Row("the second", 3, 1, 4)], 1.5, "none")
    drawing = laid_out(chart)
    lines = [(shape["y0"], shape["y1"]) for shape in drawing["layout"]["shapes"]]
    assert len(lines) == 2
    for note in drawing["layout"]["annotations"][:2]:
        # A name hangs down from its place, a line high.
        assert not [ends for ends in lines if ends[0] < note["y"] and ends[1] > note["y"] - 15]
    for trace in drawing["data"]:
        assert [ends for ends in lines if ends[0] < trace["y"][0] < ends[1]]
    assert min(lines)[0] == 0
    # What is drawn has as many pieces, each from end to end.
    content = picture(chart, "svg").decode()
    assert content.count(f"stroke: {LIGHT[0].lower()}") == 2


def test_long_names_stay_on_the_sheet() -> None:
    for figure in _figures(LONG):
        root = ElementTree.fromstring(picture(figure, "svg"))
        width, height = map(float, root.get("viewBox", "").split()[2:])
        for text in root.iter(f"{SVG}text"):
            y = text.get("y") or re.findall(r"translate\([\d.-]+ ([\d.-]+)\)", text.get("transform", ""))[0]
            assert 0 <= float(y) <= height, "".join(text.itertext())
        assert width == 800


def test_a_png_is_as_large_as_a_slide_with_a_ground_or_without(tmp_path: Path) -> None:
    chart = charts("a name")[0]
    for transparent, alpha in ((False, 255), (True, 0)):
        path = save_picture(chart, tmp_path / "deep" / "chart.png", transparent=transparent)
        with Image.open(path) as image:
            assert image.width == 1920
            assert np.asarray(image.convert("RGBA"))[0, 0, 3] == alpha
            assert "Software" not in image.info
    assert picture(chart, "png") == picture(chart, "png")


def test_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one of svg, png, not 'pdf'"):
        save_picture(charts("a")[0], tmp_path / "chart.pdf")
    assert not list(tmp_path.iterdir())


def test_the_report_does_not_wait_for_matplotlib() -> None:
    files = list(Path(static.__file__).parent.rglob("*.py"))
    assert files
    # Imports within functions, and those for the type checker alone, are indented.
    assert not [path.name for path in files if re.search(r"^(import|from) matplotlib", path.read_text("utf-8"), re.M)]
