"""Draws a chart when it comes near the screen, in the colours and the width of the moment."""

import json

from ..palette import DARK, DARK_WORDS, LIGHT, LIGHT_WORDS

__all__ = ["CHARTS"]

_PALETTES = f"""
const charts = JSON.parse(document.getElementById("charts").textContent);
const palettes = {json.dumps({"light": LIGHT, "dark": DARK})};
const words = {json.dumps({"light": LIGHT_WORDS, "dark": DARK_WORDS})};
"""

CHARTS = (
    _PALETTES
    + """const dark = window.matchMedia("(prefers-color-scheme: dark)");
const paper = window.matchMedia("print");
const family = getComputedStyle(document.body).fontFamily;
const places = charts.map((chart, number) => document.getElementById("chart-" + number));
const drawn = new Map();  // each chart's number with the width it was drawn for
const leading = new Set();  // charts whose points lead somewhere when pressed
let printing = false;

function mixed(color, ground, share) {
  const parts = (hex) => [1, 3, 5].map((place) => parseInt(hex.slice(place, place + 2), 16));
  const below = parts(ground);
  return "#" + parts(color).map((value, place) =>
    Math.round(share * value + (1 - share) * below[place]).toString(16).padStart(2, "0")).join("");
}

// Paper is as wide as it is, whatever the screen was: A4 less its margins, a half of it and a third.
function room(place) {
  const panels = place.closest(".panels");
  return !printing ? place.clientWidth : !panels ? 630 : panels.classList.contains("three") ? 205 : 312;
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
  const frame = printing ? chart.paper : chart.layout, width = room(place);
  const across = width - frame.margin.l - frame.margin.r;
  place.style.height = frame.height + "px";
  const layout = {...frame, width, font: {family, size: 13, color: ink}, hovermode: "closest",
    hoverlabel: {font: {family, size: 13}, namelength: -1}, paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)", dragmode: false, xaxis: axis(thinned(frame.xaxis, across, frame.margin)),
    yaxis: axis(frame.yaxis),
    shapes: (frame.shapes || []).map((s) => ({...s, line: {...s.line, color: of(palettes, 0)}})),
    annotations: frame.annotations.map(note) };
  drawn.set(number, width);
  Plotly.react(place, data, layout, {displayModeBar: false});
  if (!leading.has(place)) {
    leading.add(place);
    place.on("plotly_click", ({points: [{data: {meta}, pointIndex}]}) => {
      if (meta.links) window.location.hash = meta.links[pointIndex];
    });
  }
}
function reprint(start) {
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
// A chart that got another width is drawn again when it comes near, as if it never had been.
const sized = new ResizeObserver((entries) => entries.forEach((entry) => {
  const number = places.indexOf(entry.target);
  if (printing || !drawn.has(number) || drawn.get(number) === room(entry.target)) return;
  drawn.delete(number);
  near.unobserve(entry.target);
  near.observe(entry.target);
}));
places.forEach((place) => sized.observe(place));
dark.addEventListener("change", () => [...drawn.keys()].forEach(draw));
paper.addEventListener("change", () => reprint(paper.matches));
window.addEventListener("beforeprint", () => reprint(true));
window.addEventListener("afterprint", () => reprint(false));
"""
)
