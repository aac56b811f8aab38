"""The page's script: draws a chart when it comes near the screen, in the colours of the moment."""

__all__ = ["SCRIPT"]

# Okabe and Ito's palette; index 0 is the grey of a baseline. The light one leaves out its yellow and the dark
# one its deep blue, which would be hard to see. Thin letters need more contrast than thick lines do, so names have
# darker shades of the same hues where the ground is light.
SCRIPT = """
const charts = JSON.parse(document.getElementById("charts").textContent);
const palettes = {
  light: ["#5f5f5f", "#0072B2", "#D55E00", "#009E73", "#A9528A", "#B77400", "#3B8FC4"],
  dark: ["#b5b5b0", "#56B4E9", "#F0813A", "#2CC39A", "#E09AC6", "#E69F00", "#9AD2F5"] };
const words = {
  light: ["#555555", "#005F96", "#A84600", "#006E50", "#8C3B70", "#805000", "#1F6796"],
  dark: palettes.dark };
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const paper = window.matchMedia("print");
const family = getComputedStyle(document.body).fontFamily;
const places = charts.map((chart, number) => document.getElementById("chart-" + number));
const drawn = new Set();
let printing = false;

function mixed(color, ground, share) {
  const parts = (hex) => [1, 3, 5].map((place) => parseInt(hex.slice(place, place + 2), 16));
  const below = parts(ground);
  return "#" + parts(color).map((value, place) =>
    Math.round(share * value + (1 - share) * below[place]).toString(16).padStart(2, "0")).join("");
}

function draw(number) {
  const night = dark.matches && !printing, mode = night ? "dark" : "light";
  const ink = night ? "#e9e9e6" : "#1c1c1a", line = night ? "#3a3b3e" : "#deded9";
  const ground = night ? "#1f2023" : printing ? "#ffffff" : "#f7f7f4";
  const of = (palette, index) => index < 0 ? ink : palette[mode][index % palette[mode].length];
  const chart = charts[number], place = places[number];
  const data = chart.data.map((trace) => {
    const meta = trace.meta, tint = of(palettes, meta.color), copy = {...trace, showlegend: false};
    copy.line = {...trace.line, color: tint};
    if (trace.marker) copy.marker = {...trace.marker, color: tint};
    if (meta.edge) copy.marker.line = {color: ground, width: 1};
    if (meta.band || meta.fill) copy.fillcolor = tint + "2e";
    if (trace.error_x) copy.error_x = {...trace.error_x, color: tint};
    if (meta.surface) {
      // Mixed and not transparent: plotly lays each level over all that are higher.
      copy.colorscale = [[0, mixed(tint, ground, 0.45)], [1, mixed(tint, ground, 0.03)]];
      copy.line.color = mixed(tint, ground, 0.6);
    }
    return copy;
  });
  const axis = (own) => ({gridcolor: line, linecolor: line, tickcolor: line, ...own});
  const note = (a) => ({...a, arrowcolor: of(palettes, a.meta.color),
    font: {size: a.meta.small ? 11 : 13, color: of(words, a.meta.color)}});
  // Paper is as wide as it is, whatever the screen was.
  const size = printing ? {width: place.closest(".panel") ? 300 : 630} : {autosize: true};
  const layout = {...chart.layout, ...size, font: {family, size: 13, color: ink}, hovermode: "closest",
    hoverlabel: {font: {family, size: 13}}, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    dragmode: false, xaxis: axis(chart.layout.xaxis), yaxis: axis(chart.layout.yaxis),
    shapes: (chart.layout.shapes || []).map((s) => ({...s, line: {...s.line, color: of(palettes, 0)}})),
    annotations: chart.layout.annotations.map(note) };
  drawn.add(number);
  Plotly.react(place, data, layout, {displayModeBar: false, responsive: true});
}
function print(start) {
  if (printing === start) return;
  printing = start;
  charts.forEach((chart, number) => { if (start || drawn.has(number)) draw(number); });
}
const near = new IntersectionObserver((entries) => entries.forEach((entry) => {
  if (!entry.isIntersecting) return;
  near.unobserve(entry.target);
  const number = places.indexOf(entry.target);
  if (!drawn.has(number)) draw(number);
}), {rootMargin: "900px 0px"});
places.forEach((place) => near.observe(place));
dark.addEventListener("change", () => drawn.forEach(draw));
paper.addEventListener("change", () => print(paper.matches));
window.addEventListener("beforeprint", () => print(true));
window.addEventListener("afterprint", () => print(false));

const nav = document.querySelector("nav");
if (nav) {
  const fold = nav.querySelector("details"), here = nav.querySelector("summary span");
  const wide = window.matchMedia("(min-width: 1120px)");
  const links = new Map([...nav.querySelectorAll("a")].map((a) => [a.getAttribute("href").slice(1), a]));
  const sections = [...document.querySelectorAll("main > section[id]")];
  const follow = () => {
    const passed = sections.filter((section) => section.getBoundingClientRect().top < window.innerHeight / 3);
    const current = passed.length ? links.get(passed[passed.length - 1].id) : undefined;
    links.forEach((a) => a === current ? a.setAttribute("aria-current", "true") : a.removeAttribute("aria-current"));
    here.textContent = current ? current.lastElementChild.textContent : "";
  };
  const adapt = () => { fold.open = wide.matches; };
  links.forEach((a) => a.addEventListener("click", adapt));
  wide.addEventListener("change", adapt);
  document.addEventListener("scroll", follow, {passive: true});
  adapt();
  follow();
}
"""
