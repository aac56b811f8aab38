"""The page in a real browser, headless and without a network."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from batchnorm.report import Curves, Section, Series, render
from report.samples import EVIL, LONG, charts, page

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)

pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"needs a browser: one of {', '.join(BROWSERS)}")

# Text as it is drawn, with the colour of the ground it stands on.
CONTRASTS = """() => {
  const channel = (value) => (value /= 255) <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const light = (parts) => 0.2126 * channel(parts[0]) + 0.7152 * channel(parts[1]) + 0.0722 * channel(parts[2]);
  const parts = (color) => color.match(/[0-9.]+/g).map(Number);
  const ground = (element) => {
    for (; element; element = element.parentElement) {
      const own = parts(getComputedStyle(element).backgroundColor);
      if (own.length < 4 || own[3] > 0) return own;
    }
    return [255, 255, 255];
  };
  const texts = "h1, h2, h3, h4, p, dt, dd, td, th, a, .badge, math, figcaption, footer, nav span, nav i";
  const drawn = ".chart text";
  const lines = ".scatterlayer .js-line";
  const found = [];
  const look = (selector, property, least) => document.querySelectorAll(selector).forEach((element) => {
    const color = getComputedStyle(element)[property];
    if (color === "none" || !element.getClientRects().length || color.startsWith("url")) return;
    const [one, two] = [light(parts(color)), light(ground(element))];
    const contrast = (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05);
    if (contrast < least) found.push(`${selector} ${color}: ${contrast.toFixed(2)} ${element.textContent}`);
  });
  look(texts, "color", 4.5);
  look(drawn, "fill", 4.5);
  look(lines, "stroke", 3);
  return found;
}"""

SIDEWAYS = "() => [document.documentElement.scrollWidth, window.innerWidth]"

# Each chart with the number of traces that left something to see.
VISIBLE = """() => [...document.querySelectorAll(".chart")].map((chart) => {
  const seen = (mark) => { const box = mark.getBoundingClientRect(); return box.width + box.height > 0; };
  const marks = ".scatterlayer .js-line, .scatterlayer .point, .contourlayer path, .scatterlayer .js-fill, .errorbar";
  return [...chart.querySelectorAll("svg.main-svg")].length && [...chart.querySelectorAll(marks)].filter(seen).length;
})"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=BROWSER, args=arguments)
        yield started
        started.close()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(page("a name"), "utf-8")
    return path


class Visit:
    """A page that is open, and all that it complained of or asked for."""

    def __init__(self, browser: Any, path: Path, width: int = 1280, height: int = 900, scheme: str = "light") -> None:
        self.context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        self.view = self.context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.view.on("console", lambda message: self.complaints.append(message.text))
        self.view.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.view.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.view.on("request", lambda request: self.requests.append(request.url))
        self.view.goto(path.as_uri())

    def __enter__(self) -> "Visit":
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    def read_through(self) -> None:
        """Brings every chart to the screen once, as a reader does."""
        for chart in self.view.query_selector_all(".chart"):
            chart.scroll_into_view_if_needed()
            chart.wait_for_selector("svg.main-svg", state="attached", timeout=5000)


@pytest.fixture(scope="module", params=[EVIL, LONG], ids=["evil", "long"])
def telephone(
    browser: Any, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Visit]:
    """A page that was read through on a telephone."""
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(page(request.param), "utf-8")
    with Visit(browser, path, 390, 800) as visit:
        visit.read_through()
        yield visit


def test_every_chart_is_drawn_without_error_or_network(telephone: Visit) -> None:
    seen = telephone.view.evaluate(VISIBLE)
    assert len(seen) == len(charts("a")) + 2
    assert all(seen), seen
    assert telephone.complaints == []
    assert [url for url in telephone.requests if not url.startswith(("file:", "data:"))] == []
    assert len([url for url in telephone.requests if url.startswith("file:")]) == 1
    # The name is text wherever it stands: nothing was made of it.
    assert telephone.view.evaluate("document.querySelectorAll('img, main script').length") == 0


@pytest.mark.parametrize("width", [390, 360])
def test_a_telephone_does_not_scroll_sideways(telephone: Visit, width: int) -> None:
    telephone.view.set_viewport_size({"width": width, "height": 800})
    chart = "document.querySelector('svg.main-svg').clientWidth"
    telephone.view.wait_for_function(f"{chart} > {width - 40} && {chart} <= {width}", timeout=5000)
    total, shown = telephone.view.evaluate(SIDEWAYS)
    assert total <= shown
    # The long formula has a box of its own to scroll in.
    boxes = "[...document.querySelectorAll('.formula .part')].map((e) => [e.scrollWidth, e.clientWidth])"
    assert any(inner > outer for inner, outer in telephone.view.evaluate(boxes))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_and_lines_stand_out_from_their_ground(browser: Any, tmp_path: Path, scheme: str) -> None:
    lines = [Series(f"colour {index}", [0, 1], [index, index], index) for index in range(7)]
    path = tmp_path / "page.html"
    sections = [
        Section(tone, f"is-{tone}", tone, tone, (Curves("t", "x", "y", lines), "text", ("term", "words")))
        for tone in ("good", "bad", "open")
    ]
    path.write_text(render("title", "lead", sections, footer="end"), "utf-8")
    with Visit(browser, path, scheme=scheme) as visit:
        visit.read_through()
        assert visit.view.evaluate(CONTRASTS) == []
        ground = visit.view.evaluate("getComputedStyle(document.body).backgroundColor")
        red = int(re.findall(r"\d+", ground)[0])
        assert red < 50 if scheme == "dark" else red > 200


def test_colours_follow_the_system_while_the_page_is_open(browser: Any, plain: Path) -> None:
    with Visit(browser, plain) as visit:
        visit.read_through()
        color = "getComputedStyle(document.querySelector('.scatterlayer .js-line')).stroke"
        light = visit.view.evaluate(color)
        visit.view.emulate_media(color_scheme="dark")
        visit.view.wait_for_function(f"{color} !== '{light}'", timeout=5000)


def test_charts_are_drawn_when_they_come_near(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    chart = Curves("t", "x", "y", [Series("a", [0, 1], [0, 1], 1)])
    path.write_text(render("title", "lead", [Section("many", "many", blocks=(chart,) * 20)]), "utf-8")
    with Visit(browser, path) as visit:
        visit.view.wait_for_selector("#chart-0 svg.main-svg", state="attached")
        drawn = "document.querySelectorAll('.chart:has(svg.main-svg)').length"
        assert visit.view.evaluate(drawn) < 10
        before = visit.view.evaluate("document.documentElement.scrollHeight")
        visit.read_through()
        assert visit.view.evaluate(drawn) == 20
        # What was read stays where it was while charts below and above are drawn.
        assert visit.view.evaluate("document.documentElement.scrollHeight") == before


def test_print_has_every_chart_on_white_and_within_the_paper(browser: Any, plain: Path) -> None:
    with Visit(browser, plain, scheme="dark") as visit:
        document = visit.view.pdf(format="A4")
        assert document.startswith(b"%PDF")
        count = len(charts("a")) + 2
        visit.view.wait_for_function(f"document.querySelectorAll('svg.main-svg').length >= {count}")
        # A4 less its margins is 680 pixels wide.
        visit.view.set_viewport_size({"width": 680, "height": 900})
        visit.view.emulate_media(media="print")
        visit.view.wait_for_function("printing")
        assert all(visit.view.evaluate(VISIBLE))
        total, shown = visit.view.evaluate(SIDEWAYS)
        assert total <= shown
        assert visit.view.evaluate(CONTRASTS) == []
        # The body's own ground is white: dark is for screens.
        assert visit.view.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        wide = "[...document.querySelectorAll('.chart')].map((e) => [e.scrollWidth, e.clientWidth])"
        assert all(inner <= outer for inner, outer in visit.view.evaluate(wide))
        visit.view.emulate_media(media="screen")
        visit.view.wait_for_function("!printing")
        # Where the medium's change is not told, these events are.
        assert visit.view.evaluate("(window.dispatchEvent(new Event('beforeprint')), printing)")
        assert not visit.view.evaluate("(window.dispatchEvent(new Event('afterprint')), printing)")
        assert visit.complaints == []


def test_the_contents_open_on_a_telephone_and_stay_on_a_wide_screen(browser: Any, plain: Path) -> None:
    with Visit(browser, plain, 390, 800) as visit:
        assert not visit.view.is_visible("nav ol")
        visit.view.click("nav summary")
        visit.view.click("nav a[href='#two']")
        assert not visit.view.is_visible("nav ol")
        # The heading that was chosen is on the screen, below the bar.
        top = visit.view.evaluate("document.querySelector('#two h2').getBoundingClientRect().top")
        bar = visit.view.evaluate("document.querySelector('nav').getBoundingClientRect().bottom")
        assert bar <= top < 400
        visit.view.set_viewport_size({"width": 1280, "height": 800})
        visit.view.wait_for_selector("nav ol", state="visible")
        visit.view.click("nav a[href='#one']")
        visit.view.wait_for_selector("nav a[href='#one'][aria-current]")
        assert visit.view.is_visible("nav ol")
