"""Chromium for tests: headless, without a network, and a page that is open in it."""

import shutil
from pathlib import Path
from typing import Any

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)

needs_browser = pytest.mark.skipif(BROWSER is None, reason=f"needs a browser: one of {', '.join(BROWSERS)}")

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
  const texts = "h1, h2, h3, p, dt, dd, td, th, a, .badge, math, figcaption, footer, nav span, nav i, " +
    "summary, label, .sketch span";
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
  look(".sketch path:not(.area)", "stroke", 3);
  return found;
}"""

SIDEWAYS = "() => [document.documentElement.scrollWidth, window.innerWidth]"


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
