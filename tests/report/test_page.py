import json
import re
from dataclasses import replace
from itertools import pairwise
from typing import Any

from plotly.offline import get_plotlyjs

from batchnorm.report import Curves, Panels, Section, Series, Table, render
from report.loads import Loads
from report.samples import EVIL, charts, page


def _charts(text: str) -> list[Any]:
    found = re.search(r'<script type="application/json" id="charts">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    return json.loads(found.group(1))


def test_all_text_is_escaped_and_nothing_is_fetched() -> None:
    text = page(EVIL)
    bundle = get_plotlyjs()
    assert text.count(bundle) == 1
    own = text.replace(bundle, "")
    assert own.count("<script") == 4
    assert own.count("</script>") == 4
    assert "<img" not in own.replace('<img src="data:image/png;base64,', "")
    assert Loads.of(own) == {"data:,", "#one", "#two", "#start"}
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|import\(", own)


def test_charts_are_json_that_a_browser_reads() -> None:
    drawn = _charts(page(EVIL))
    assert len(drawn) == len(charts(EVIL)) + 2
    assert [1, None, 3] in [trace["y"] for trace in drawn[0]["data"]]


def _elements(text: str, name: str) -> list[str]:
    return re.findall(rf"<{name}[ >][^>]*>", text.replace(get_plotlyjs(), ""))


def test_a_table_is_one_to_who_hears_it() -> None:
    table = Table(("claim", "verdict"), [("one", "good"), ("two", "bad")], ["good", "bad"])
    text = render("t", "l", [Section("s", blocks=(table, replace(table, title="The verdicts")))])
    assert [row for row in _elements(text, "th") if 'scope="row"' not in row] == [
        '<th scope="col" role="columnheader">'
    ] * 4
    assert len([row for row in _elements(text, "th") if 'scope="row"' in row]) == 4
    names = [re.findall(r'aria-label="(.*?)"', each)[0] for each in _elements(text, "table")]
    assert names == ["claim, verdict", "The verdicts"]


def test_headings_leave_out_no_level_and_the_text_can_be_reached_at_once() -> None:
    text = page("a name").replace(get_plotlyjs(), "")
    levels = [int(level) for level in re.findall(r"<h(\d)", text)]
    assert all(after <= before + 1 for before, after in pairwise(levels))
    first = text.split("<body>")[1].lstrip()
    assert first.startswith('<a class="skip" href="#start">')
    assert 'id="start"' in _elements(text, "main")[0]
    assert 'aria-label="Contents"' in _elements(text, "nav")[0]


def test_without_scripts_the_contents_are_open_and_no_more_is_promised_than_there_is() -> None:
    text = page("a name").replace(get_plotlyjs(), "")
    assert "<details open>" in text
    promise = re.findall(r"<noscript>(.*?)</noscript>", text)[0]
    assert "the verdicts and effects are in the tables" in promise


def test_lists_of_terms_are_closed_once() -> None:
    text = page("a name")
    assert text.count("<dl>") == text.count("</dl>") == 1
    assert text.count("<section") == text.count("</section>") == 3


def test_the_contents_list_the_sections_that_can_be_reached() -> None:
    sections = [Section("First", "first", "well", "good"), Section("Second", "second"), Section("Not listed")]
    text = render("t", "l", sections).replace(get_plotlyjs(), "")
    contents = re.search(r"<nav .*?</nav>", text, re.DOTALL)
    assert contents is not None
    assert re.findall(r'href="#(\w+)"', contents[0]) == ["first", "second"]
    assert "✓" in contents[0]
    assert "Not listed" not in contents[0]
    assert "<nav" not in render("t", "l", [Section("Not listed")]).replace(get_plotlyjs(), "")


def test_room_is_kept_for_charts_that_are_not_drawn_yet() -> None:
    text = page("a name")
    heights = [int(height) for height in re.findall(r'id="chart-\d+" [^>]* style="height:(\d+)px"', text)]
    assert heights == [drawing["layout"]["height"] for drawing in _charts(text)]


def test_what_is_compared_has_the_same_frame() -> None:
    one = Curves("one", "x", "y", [Series("a long name of it", [0, 1], [0, 1], 1)])
    two = Curves("two", "x", "y", [Series("b", [0, 1], [0, 1], 1)])
    first, second = _charts(render("t", "l", [Section("s", blocks=(Panels("both", [one, two]),))]))
    assert first["layout"]["margin"] == second["layout"]["margin"]
    assert first["layout"]["height"] == second["layout"]["height"]
    alone = _charts(render("t", "l", [Section("s", blocks=(two,))]))[0]
    assert alone["layout"]["margin"]["r"] < second["layout"]["margin"]["r"]


def test_three_charts_stand_in_a_row_unless_names_take_their_room() -> None:
    bare = Curves("t", "x", "y", [Series("", [0, 1], [0, 1], 1)])
    named = Curves("t", "x", "y", [Series("with batch norm", [0, 1], [0, 1], 1)])
    for panels, three in (([bare] * 3, True), ([bare, bare, named], False), ([bare] * 2, False)):
        text = render("t", "l", [Section("s", blocks=(Panels("p", panels),))])
        assert ('<div class="panels three">' in text) is three
