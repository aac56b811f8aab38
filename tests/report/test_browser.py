"""The page in a real browser, headless and without a network."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from batchnorm.report import Curves, Formula, Panels, Section, Series, render
from report.browser import ARGUMENTS, BROWSER, CONTRASTS, SIDEWAYS, Visit, needs_browser, sync_api
from report.samples import EVIL, LONG, charts, page

pytestmark = needs_browser

# Numbers of axes that touch each other, or that the chart's edge cuts.
CROWDED = """() => [...document.querySelectorAll(".chart")].flatMap((chart) => {
  const frame = chart.getBoundingClientRect();
  return [".xtick text", ".ytick text"].flatMap((kind) => {
    const shown = [...chart.querySelectorAll(kind)].filter((text) => text.textContent && text.getClientRects().length);
    const boxes = shown.map((text) => [text.textContent, text.getBoundingClientRect()]);
    const cut = ([, box]) => box.left < frame.left - 1 || box.right > frame.right + 1 || box.bottom > frame.bottom + 1;
    const touch = ([, a], [, b]) =>
      a.left < b.right && b.left < a.right && a.top < b.bottom - 3 && b.top < a.bottom - 3;
    const found = boxes.filter(cut).map(([text]) => `${chart.id} cuts ${text}`);
    if (kind === ".xtick text" && boxes.length < 2) found.push(`${chart.id} has ${boxes.length} numbers`);
    boxes.forEach((one, place) => boxes.slice(place + 1).forEach((other) => {
      if (touch(one, other)) found.push(`${chart.id}: ${one[0]} on ${other[0]}`);
    }));
    return found;
  });
})"""

# Each chart with the number of traces that left something to see.
VISIBLE = """() => [...document.querySelectorAll(".chart")].map((chart) => {
  const seen = (mark) => { const box = mark.getBoundingClientRect(); return box.width + box.height > 0; };
  const marks = ".scatterlayer .js-line, .scatterlayer .point, .contourlayer path, .scatterlayer .js-fill, .errorbar";
  return [...chart.querySelectorAll("svg.main-svg")].length && [...chart.querySelectorAll(marks)].filter(seen).length;
})"""


@pytest.fixture(scope="module")
def playwright() -> Iterator[Any]:
    with sync_api.sync_playwright() as started:
        yield started


@pytest.fixture(scope="module")
def browser(playwright: Any) -> Iterator[Any]:
    started = playwright.chromium.launch(executable_path=BROWSER, args=ARGUMENTS)
    yield started
    started.close()


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Charts with many long numbers on their axes, alone, in twos and in threes."""
    rates = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3]
    far = [10.0**power for power in range(-9, 4)]

    def curves(x: list[float], name: str = "", *, ticks: list[float] | None = None, log: bool = True) -> Curves:
        return Curves("t", "x", "y", [Series(name, x, x, 1)], log_x=log, log_y=log, x_ticks=ticks)

    kinds = [
        curves(rates, ticks=rates),
        curves(rates, "a name for it"),
        curves(far),
        curves([0.00021, 0.00029], log=False),
        curves([-20_000, 60_000], log=False),
        curves([3.0, 95.0]),
    ]
    blocks = [*kinds, Panels("twos", kinds[:2]), Panels("threes", [kinds[0], kinds[2], kinds[5]])]
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(render("title", "lead", [Section("s", "s", blocks=blocks)]), "utf-8")
    return path


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(page("a name"), "utf-8")
    return path


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
    assert telephone.view.evaluate("document.querySelectorAll('img:not([alt]), main script').length") == 0


@pytest.mark.parametrize("width", [390, 360, 320])
def test_a_telephone_does_not_scroll_sideways(telephone: Visit, width: int) -> None:
    telephone.view.set_viewport_size({"width": width, "height": 800})
    chart = "document.querySelector('svg.main-svg').clientWidth"
    telephone.view.evaluate("document.querySelector('.chart').scrollIntoView()")  # what is far is drawn when it is near
    telephone.view.wait_for_function(f"{chart} > {width - 40} && {chart} <= {width}", timeout=5000)
    total, shown = telephone.view.evaluate(SIDEWAYS)
    assert total <= shown
    # The long formula has a box of its own to scroll in.
    boxes = "[...document.querySelectorAll('.formula .part')].map((e) => [e.scrollWidth, e.clientWidth, e.tabIndex])"
    found = telephone.view.evaluate(boxes)
    assert any(inner > outer for inner, outer, _ in found)
    # It is reached with the keyboard, and no other is.
    assert [inner > outer for inner, outer, _ in found] == [tab == 0 for *_, tab in found]
    assert telephone.view.evaluate("document.querySelector('.part[tabindex]').ariaLabel")
    assert "gradient" in telephone.view.evaluate("getComputedStyle(document.querySelector('.part')).backgroundImage")


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
    path.write_text(render("title", "lead", [Section("many", "many", blocks=(chart,) * 12)]), "utf-8")
    with Visit(browser, path) as visit:
        visit.view.wait_for_selector("#chart-0 svg.main-svg", state="attached")
        drawn = "document.querySelectorAll('.chart:has(svg.main-svg)').length"
        assert visit.view.evaluate(drawn) < 10
        before = visit.view.evaluate("document.documentElement.scrollHeight")
        visit.read_through()
        assert visit.view.evaluate(drawn) == 12
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
        assert visit.view.evaluate(CROWDED) == []
        wide = "[...document.querySelectorAll('.chart')].map((e) => [e.scrollWidth, e.clientWidth])"
        assert all(inner <= outer for inner, outer in visit.view.evaluate(wide))
        visit.view.emulate_media(media="screen")
        visit.view.wait_for_function("!printing")
        # Where the medium's change is not told, these events are.
        assert visit.view.evaluate("(window.dispatchEvent(new Event('beforeprint')), printing)")
        assert not visit.view.evaluate("(window.dispatchEvent(new Event('afterprint')), printing)")
        assert visit.complaints == []


def test_numbers_of_an_axis_are_clear_of_each_other_on_every_screen_and_on_paper(browser: Any, crowded: Path) -> None:
    with Visit(browser, crowded, 320) as visit:
        for width in (320, 390, 768, 1280):
            visit.view.set_viewport_size({"width": width, "height": 900})
            visit.view.evaluate("places.forEach((place, number) => draw(number))")
            assert (width, visit.view.evaluate(CROWDED)) == (width, [])
            turned = r"[...document.querySelectorAll('.xtick text')].filter((e) => /rotate\((?!0)/.test(e.outerHTML))"
            assert visit.view.evaluate(f"{turned}.length") == 0
        # A4 less its margins is 680 pixels wide.
        visit.view.set_viewport_size({"width": 680, "height": 900})
        visit.view.emulate_media(media="print")
        visit.view.wait_for_function("printing")
        assert visit.view.evaluate(CROWDED) == []
        # Three in a row have the width of their column, and no chart reaches into the next.
        over = """[...document.querySelectorAll(".chart")].filter((chart) =>
          chart.querySelector("svg.main-svg").clientWidth > chart.clientWidth).map((chart) => chart.id)"""
        assert visit.view.evaluate(over) == []
        assert visit.view.evaluate("document.querySelectorAll('.panels.three .chart').length") == 3


def test_letters_twice_as_large_fit(playwright: Any, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(page("standardisation"), "utf-8")
    large = playwright.chromium.launch(
        executable_path=BROWSER, args=[*ARGUMENTS, "--blink-settings=defaultFontSize=32"]
    )
    with Visit(large, path) as visit:
        for width in (1280, 390):
            visit.view.set_viewport_size({"width": width, "height": 900})
            visit.view.wait_for_function(f"innerWidth === {width}")
            html, text, heading = (
                float(visit.view.evaluate(f"getComputedStyle(document.querySelector('{name}')).fontSize")[:-2])
                for name in ("html", "section p", "h2")
            )
            assert html == 32
            assert html <= text <= heading
            total, shown = visit.view.evaluate(SIDEWAYS)
            assert total <= shown
            # The menu, not the column: there is no room for both.
            assert not visit.view.is_visible("nav ol")
    large.close()


def test_a_formula_a_little_too_wide_is_made_smaller(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(render("t", "l", [Section("s", blocks=(Formula("a + " * 10 + "b"),))]), "utf-8")
    size = "parseFloat(getComputedStyle(document.querySelector('math')).fontSize)"
    over = "document.querySelector('.part').scrollWidth - document.querySelector('.part').clientWidth"
    with Visit(browser, path, 600) as visit:
        plain = visit.view.evaluate(size)
        width = visit.view.evaluate("document.querySelector('math').getBoundingClientRect().width")
        around = visit.view.evaluate("innerWidth - document.querySelector('.formula').clientWidth")
        visit.view.set_viewport_size({"width": round(0.95 * width + around), "height": 800})
        visit.view.wait_for_function(f"{size} < {plain}", timeout=5000)
        assert visit.view.evaluate(size) >= 0.8 * plain
        assert visit.view.evaluate(over) == 0
        assert not visit.view.evaluate("document.querySelector('.part').hasAttribute('tabindex')")


def test_without_scripts_the_contents_and_the_text_are_there(browser: Any, plain: Path) -> None:
    context = browser.new_context(viewport={"width": 1280, "height": 800}, java_script_enabled=False)
    view = context.new_page()
    view.goto(plain.as_uri())
    assert view.is_visible("nav ol a[href='#two']")
    assert view.is_visible("section#two h2")
    context.close()


def test_the_column_of_contents_cannot_be_closed(browser: Any, plain: Path) -> None:
    with Visit(browser, plain) as visit:
        visit.view.click("nav summary")
        visit.view.wait_for_function("document.querySelector('nav details').open")
        visit.view.focus("nav a")
        visit.view.keyboard.press("Escape")
        assert visit.view.is_visible("nav ol")
        # From the top, the first key leads past it.
        visit.view.evaluate("document.activeElement.blur()")
        visit.view.reload()
        visit.view.keyboard.press("Tab")
        assert visit.view.evaluate("document.activeElement.className") == "skip"
        assert visit.view.evaluate("document.activeElement.getBoundingClientRect().top") >= 0
        visit.view.keyboard.press("Enter")
        visit.view.wait_for_function("document.activeElement.id === 'start'")


def test_the_menu_closes_with_a_key_and_with_a_touch_elsewhere_and_tables_are_told(browser: Any, plain: Path) -> None:
    with Visit(browser, plain, 390, 800) as visit:
        visit.view.click("nav summary")
        visit.view.focus("nav a[href='#two']")
        visit.view.keyboard.press("Escape")
        assert not visit.view.is_visible("nav ol")
        assert visit.view.evaluate("document.activeElement.tagName") == "SUMMARY"
        visit.view.click("nav summary")
        assert visit.view.is_visible("nav ol")
        visit.view.mouse.click(200, 780)
        assert not visit.view.is_visible("nav ol")
        # To who hears the page, a telephone's tables are tables.
        told = visit.view.locator("table").aria_snapshot()
        for word in ('table "a name, verdict, long"', 'columnheader "verdict"', 'rowheader "a name"', 'cell "a name"'):
            assert word in told
        # Its head is heard and not seen.
        assert visit.view.evaluate("document.querySelector('thead').getBoundingClientRect().height") <= 1


def test_what_is_told_beside_the_pointer_has_names_and_a_true_minus(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    chart = Curves("t", "training step", "loss", [Series("a", [-1, 0, 1], [2, -0.5, 2], 1)])
    path.write_text(render("title", "lead", [Section("s", blocks=(chart,))]), "utf-8")
    with Visit(browser, path) as visit:
        visit.read_through()
        box = visit.view.locator(".nsewdrag").bounding_box()
        assert box is not None
        visit.view.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] - 12)
        visit.view.wait_for_selector(".hovertext")
        told = visit.view.evaluate("document.querySelector('.hovertext').textContent")
        assert "training step: 0" in told
        assert "loss: −0.5" in told


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
