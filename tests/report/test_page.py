import json
import math
import re
from html.parser import HTMLParser
from itertools import pairwise

from plotly.offline import get_plotlyjs

from batchnorm.report import Curves, Intervals, Row, Section, Series, Table, render
from batchnorm.report.plot import figure

EVIL = "</script><script>alert('x')</script><img src=http://evil.example/x>"
CHARTS = (
    Curves(EVIL, EVIL, EVIL, [Series(EVIL, [1, 2, 3], [1, math.nan, 3], 1, [0, 1, 2], [2, 3, 4])], log_x=True),
    Intervals(EVIL, EVIL, [Row(EVIL, 0.5, 0.4, 0.6), Row("b", 1, -math.inf, math.inf)], 1.0, EVIL, log_x=True),
)


class _Loads(HTMLParser):
    """Collects what the page's elements refer to, and the elements themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("img", "iframe", "object", "embed", "video", "audio", "base")
        assert not [name for name, _ in attrs if name.startswith("on")]
        self.found |= {value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")}

    @classmethod
    def of(cls, page: str) -> set[str]:
        parser = cls()
        parser.feed(page)
        return parser.found


def _page() -> str:
    table = Table((EVIL, "verdict"), [(EVIL, EVIL)], ["good"], ["anchor"])
    section = Section(EVIL, "anchor", EVIL, "good", (EVIL, (EVIL, EVIL), (EVIL, EVIL), EVIL, table, *CHARTS))
    return render(EVIL, EVIL, [section], footer=EVIL)


def test_all_text_is_escaped_and_nothing_is_fetched() -> None:
    page = _page()
    bundle = get_plotlyjs()
    assert page.count(bundle) == 1
    own = page.replace(bundle, "")
    assert own.count("<script") == 3
    assert own.count("</script>") == 3
    assert "<img" not in own
    assert _Loads.of(own) == {"data:,", "#anchor"}
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|import\(", own)


def test_charts_are_json_that_a_browser_reads() -> None:
    text = re.search(r'<script type="application/json" id="charts">(.*?)</script>', _page(), re.DOTALL)
    assert text is not None
    charts = json.loads(text.group(1))
    assert len(charts) == 2
    assert charts[0]["data"][-1]["y"] == [1, None, 3]


def test_lists_of_terms_are_closed_once() -> None:
    page = _page()
    assert page.count("<dl>") == page.count("</dl>") == 1
    assert page.count("<section") == page.count("</section>") == 1


def test_light_dark_telephone_and_print_are_styled() -> None:
    page = _page()
    for rule in ("prefers-color-scheme: dark", "@media print", "max-width: 620px", 'name="viewport"', "beforeprint"):
        assert rule in page


def test_labels_at_the_ends_do_not_overlap() -> None:
    names = ["one", "two", "three", "four", "a label that takes more than one line"]
    lines = [Series(name, [0, 1], [0, 0.5 + 1e-3 * place], place) for place, name in enumerate(names)]
    for top in (0.5, 1.0):
        layout = figure(Curves("t", "x", "y", lines, y_range=(0, top)))["layout"]
        pixels = layout["height"] - layout["margin"]["t"] - layout["margin"]["b"]
        spans = []
        for note in layout["annotations"]:
            if note["text"] == "y":
                continue
            centre = note["y"] / top * pixels + note["yshift"]
            half = 7 * (note["text"].count("<br>") + 1)
            spans.append((centre - half, centre + half))
        spans.sort()
        assert all(below[1] <= above[0] for below, above in pairwise(spans))
        assert spans[-1][1] <= pixels + 12
        assert spans[0][0] >= -12
