"""Formulas that are wider than the screen: a little smaller where that is enough, or else a box to scroll in."""

__all__ = ["FORMULAS"]

# Below eight tenths small signs are hard to read; to scroll is then the lesser evil. A box that scrolls is
# reached with the keyboard, and is told to readers who hear the page.
FORMULAS = """
const least = 0.8;
const parts = [...document.querySelectorAll(".formula .part")];
function adjust() {
  parts.forEach((part) => { part.style.fontSize = ""; });
  const shares = parts.map((part) => part.clientWidth / part.scrollWidth);
  parts.forEach((part, number) => {
    const fits = shares[number] >= least;
    // A hair less: fractions and their lines are rounded to pixels.
    if (shares[number] < 1 && fits) part.style.fontSize = `${(100 * shares[number] - 1).toFixed(1)}%`;
    if (fits) ["tabindex", "role", "aria-label"].forEach((name) => part.removeAttribute(name));
    else {
      part.tabIndex = 0;
      part.setAttribute("role", "group");
      part.setAttribute("aria-label", "Formula, wider than the screen: scroll sideways");
    }
  });
}
let seen = 0;
function fit() {
  if (window.innerWidth === seen) return;
  seen = window.innerWidth;
  adjust();
}
window.addEventListener("resize", fit);
document.fonts.ready.then(adjust);
fit();
"""
