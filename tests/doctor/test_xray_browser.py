"""The X-ray page in a real browser, headless and without a network."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from doctor.xray_models import diagnosed, evil
from report.browser import ARGUMENTS, BROWSER, CONTRASTS, SIDEWAYS, Visit, needs_browser, sync_api

pytestmark = needs_browser

# The tops of a row and of the bar above it.
TOPS = """(anchor) => [document.getElementById(anchor).getBoundingClientRect().top,
  innerWidth < 1000 ? document.querySelector("nav").getBoundingClientRect().bottom : 0]"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=BROWSER, args=ARGUMENTS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a model whose names try to be markup, with a finding."""
    return evil().to_html(tmp_path_factory.mktemp("evil") / "page.html")


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a hundred and twenty norms, of which one is poisoned."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(120):
        layers += [nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU()]
    model = nn.Sequential(*layers)
    model[298].running_var[0] = -1.0
    return diagnosed(model, [torch.randn(32, 8)]).to_html(tmp_path_factory.mktemp("deep") / "page.html")


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1280, "dark")])
def test_it_is_drawn_without_error_or_network_and_can_be_read(
    browser: Any, poisoned: Path, width: int, scheme: str
) -> None:
    with Visit(browser, poisoned, width, scheme=scheme) as visit:
        visit.read_through()
        visit.view.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
        assert visit.view.evaluate(CONTRASTS) == []
        for narrow in (width, 320) if width < 1000 else (width,):
            visit.view.set_viewport_size({"width": narrow, "height": 800})
            total, shown = visit.view.evaluate(SIDEWAYS)
            assert total <= shown
        assert visit.complaints == []
        assert [url for url in visit.requests if not url.startswith(("file:", "data:"))] == []
        assert visit.view.evaluate("document.querySelectorAll('img, main script').length") == 0
        # To who hears the page, each picture is one and has its words.
        told = visit.view.locator(".entry").first.aria_snapshot()
        assert told.count('img "') == 6
        assert 'img "Standardised, from −6 to 6' in told


def test_a_finding_leads_to_its_row_among_a_hundred(browser: Any, deep: Path) -> None:
    for width in (390, 1280):
        with Visit(browser, deep, width) as visit:
            visit.view.click("a[href='#layer-100']")
            visit.view.wait_for_function("scrollY > 1000")
            top, bar = visit.view.evaluate(TOPS, "layer-100")
            assert bar <= top < 400
            # And back: the row's own text names the finding.
            visit.view.click("#layer-100 summary")
            visit.view.click("#layer-100 a[href='#finding-BN004']")
            top, bar = visit.view.evaluate(TOPS, "finding-BN004")
            assert bar <= top < 400


@pytest.fixture(scope="module")
def desk(browser: Any, deep: Path) -> Iterator[Any]:
    """The page of many norms on a wide screen."""
    with Visit(browser, deep) as visit:
        yield visit.view


def test_a_row_unfolds_into_larger_pictures(desk: Any) -> None:
    size = "document.querySelector('#layer-3 svg').getBoundingClientRect().height"
    desk.evaluate("location.hash = 'layer-3'")
    small = desk.evaluate(size)
    assert not desk.is_visible("#layer-3 table")
    desk.click("#layer-3 summary")
    assert desk.is_visible("#layer-3 table")
    assert desk.evaluate(size) > 2 * small
    assert desk.is_visible("#layer-3 .ends i")


def test_only_those_with_findings_can_be_asked_for(desk: Any) -> None:
    visible = "[...document.querySelectorAll('.entry')].filter((e) => e.getClientRects().length).map((e) => e.id)"
    desk.evaluate("location.hash = ''")
    assert len(desk.evaluate(visible)) == 120
    desk.check(".only input")
    assert desk.evaluate(visible) == ["layer-100"]
    # A link to another one shows it all the same.
    desk.evaluate("location.hash = 'layer-7'")
    assert desk.evaluate(visible) == ["layer-7", "layer-100"]
    desk.uncheck(".only input")


def test_a_point_tells_its_layer_and_leads_to_it(desk: Any) -> None:
    chart = desk.locator(".chart").first
    chart.scroll_into_view_if_needed()
    points = chart.locator(".scatterlayer .trace").first.locator(".point")
    points.nth(60).wait_for(state="attached")
    box = points.nth(60).bounding_box()
    assert box is not None
    desk.mouse.move(box["x"] + box["width"] / 2 - 2, box["y"] + box["height"] / 2)
    desk.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=3)
    desk.wait_for_selector(".hovertext")
    assert "61: 181" in desk.evaluate("document.querySelector('.hovertext').textContent")
    for _ in range(5):  # a press that comes while the page is still at work is lost, as a reader's may be
        desk.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        desk.wait_for_timeout(200)
        if desk.evaluate("location.hash") == "#layer-61":
            break
    assert desk.evaluate("location.hash") == "#layer-61"


def test_print_has_every_row(browser: Any, deep: Path) -> None:
    with Visit(browser, deep, scheme="dark") as visit:
        # A4 less its margins is 680 pixels wide.
        visit.view.set_viewport_size({"width": 680, "height": 900})
        visit.view.emulate_media(media="print")
        heights = "[...document.querySelectorAll('.entry svg')].map((each) => each.getBoundingClientRect().width)"
        assert min(visit.view.evaluate(heights)) > 50
        total, shown = visit.view.evaluate(SIDEWAYS)
        assert total <= shown
        assert not visit.view.is_visible("#layer-1 summary")
        assert visit.complaints == []
