"""The contents: a menu on a narrow screen, a column that stays on a wide one."""

__all__ = ["FOLD", "MENU"]

# As in the style: from here on there is room for the column.
_WIDE = "(min-width: 70em)"

#: Stands right behind the menu, so that it never covers a telephone's screen while the rest is read.
FOLD = f'document.querySelector("nav details").open = window.matchMedia("{_WIDE}").matches;'

MENU = (
    """
const nav = document.querySelector("nav");
if (nav) {
  const fold = nav.querySelector("details"), bar = nav.querySelector("summary"), here = bar.querySelector("span");
  const wide = window.matchMedia("WIDE");
  const links = new Map([...nav.querySelectorAll("a")].map((a) => [a.getAttribute("href").slice(1), a]));
  const sections = [...document.querySelectorAll("main > section[id]")];
  const follow = () => {
    const passed = sections.filter((section) => section.getBoundingClientRect().top < window.innerHeight / 3);
    const current = passed.length ? links.get(passed[passed.length - 1].id) : undefined;
    links.forEach((a) => a === current ? a.setAttribute("aria-current", "true") : a.removeAttribute("aria-current"));
    here.textContent = current ? current.lastElementChild.textContent : "";
  };
  // The column has nothing to press: it stays.
  const adapt = () => { fold.open = wide.matches; bar.tabIndex = wide.matches ? -1 : 0; };
  const close = () => { if (!wide.matches) fold.open = false; };
  fold.addEventListener("toggle", () => { if (wide.matches) fold.open = true; });
  links.forEach((a) => a.addEventListener("click", close));
  document.addEventListener("pointerdown", (event) => { if (!nav.contains(event.target)) close(); });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || wide.matches || !fold.open) return;
    if (fold.contains(document.activeElement)) bar.focus();
    close();
  });
  wide.addEventListener("change", adapt);
  document.addEventListener("scroll", follow, {passive: true});
  adapt();
  follow();
}
"""
).replace("WIDE", _WIDE)
