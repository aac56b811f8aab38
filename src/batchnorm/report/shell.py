"""The page's frame, style and script, kept as text so that an installed package needs no data files."""

__all__ = ["PAGE", "SCRIPT", "STYLE"]

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>$title</title>
<style>$style</style>
</head>
<body>
<main>
<h1>$title</h1>
<p class="lead">$lead</p>
<noscript><p class="lead">The plots need JavaScript; every number they show is in the tables.</p></noscript>
$body
<footer>$footer</footer>
</main>
<script type="application/json" id="charts">$charts</script>
<script>$plotly</script>
<script>$script</script>
</body>
</html>
"""

STYLE = """
:root { --ink: #1b1b1b; --soft: #595959; --paper: #ffffff; --line: #dcdcdc; --panel: #f6f6f4;
  --good: #00694d; --bad: #a33f00; --open: #6b5200; --link: #005a8f; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #e9e9e6; --soft: #ababa6; --paper: #161719; --line: #3a3b3e; --panel: #202124;
    --good: #4fd1a8; --bad: #ff9a5c; --open: #f2c74b; --link: #7cc4f2; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 17px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 52rem; margin: 0 auto; padding: 1.5rem 1.1rem 3rem; overflow-wrap: break-word; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: .5rem 0 .6rem; }
h2 { font-size: 1.35rem; line-height: 1.3; margin: 0 0 .7rem; }
section { border-top: 1px solid var(--line); padding-top: 1.6rem; margin-top: 2.2rem; }
p { margin: .6rem 0; }
.lead { color: var(--soft); font-size: 1.08rem; }
a { color: var(--link); }
.badge { display: inline-block; border: 1.5px solid currentColor; border-radius: 1em; padding: 0 .6em;
  font-size: .82rem; font-weight: 650; white-space: nowrap; vertical-align: middle; }
.good { color: var(--good); } .bad { color: var(--bad); } .open { color: var(--open); }
dl { margin: .8rem 0; display: grid; grid-template-columns: 9.5rem 1fr; gap: .45rem 1rem; }
dt { color: var(--soft); } dd { margin: 0; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0; font-size: .93rem;
  font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .45rem .7rem .45rem 0;
  border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; }
figure { margin: 1.4rem 0; padding: .9rem .9rem .5rem; background: var(--panel); border-radius: .6rem; }
figcaption { font-weight: 620; margin-bottom: .3rem; }
.chart { width: 100%; }
.note { color: var(--soft); font-size: .86rem; margin: .2rem 0 .4rem; }
footer { color: var(--soft); font-size: .86rem; margin-top: 3rem; }
@media (max-width: 620px) {
  body { font-size: 16px; }
  main { padding: 1rem .9rem 2rem; }
  figure { margin-left: -.9rem; margin-right: -.9rem; border-radius: 0; padding: .8rem .5rem .4rem; }
  figcaption, .note { padding: 0 .4rem; }
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .6rem; }
  thead { display: none; }
  tr { display: block; border-bottom: 1px solid var(--line); padding: .5rem 0; }
  td { display: grid; grid-template-columns: 6.6rem 1fr; gap: .6rem; border: 0; padding: .12rem 0; }
  td::before { content: attr(data-label); color: var(--soft); }
  td .badge { justify-self: start; }
  td:has(> span:empty) { display: none; } }
@media print {
  body { font-size: 10.5pt; } main { max-width: none; padding: 0; }
  figure { break-inside: avoid; background: none; border: 1px solid var(--line); }
  h2 { break-after: avoid; } tr { break-inside: avoid; } }
"""

# Okabe and Ito's palette; index 0 is the grey of a baseline. The light one leaves out its yellow and the dark
# one its deep blue, which would be hard to see.
SCRIPT = """
const charts = JSON.parse(document.getElementById("charts").textContent);
const palettes = {
  light: ["#5f5f5f", "#0072B2", "#D55E00", "#009E73", "#A9528A", "#B77400", "#3B8FC4"],
  dark: ["#b5b5b0", "#56B4E9", "#F0813A", "#2CC39A", "#E09AC6", "#E69F00", "#9AD2F5"] };
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const family = getComputedStyle(document.body).fontFamily;
const clear = (color) => color + "2e";
function draw(printing) {
  const night = dark.matches && !printing;
  const palette = palettes[night ? "dark" : "light"];
  const ink = night ? "#e9e9e6" : "#1b1b1b", line = night ? "#3f4043" : "#d9d9d6";
  const color = (index) => index < 0 ? ink : palette[index % palette.length];
  charts.forEach((chart, number) => {
    const data = chart.data.map((trace) => {
      const tint = color(trace.meta.color), copy = {...trace, showlegend: false};
      copy.line = {...trace.line, color: tint};
      copy.marker = {...trace.marker, color: tint};
      if (trace.meta.band) copy.fillcolor = clear(tint);
      if (trace.error_x) copy.error_x = {...trace.error_x, color: tint};
      return copy;
    });
    const axis = (own) => ({gridcolor: line, linecolor: line, tickcolor: line, ...own});
    const layout = {...chart.layout, font: {family, size: 13, color: ink}, hovermode: "closest",
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", dragmode: false, autosize: true,
      xaxis: axis(chart.layout.xaxis), yaxis: axis(chart.layout.yaxis),
      shapes: (chart.layout.shapes || []).map((s) => ({...s, line: {...s.line, color: palette[0]}})),
      annotations: chart.layout.annotations.map((a) => ({...a, font: {size: 13, color: color(a.meta)}})) };
    Plotly.react("chart-" + number, data, layout, {displayModeBar: false, responsive: true});
  });
}
draw(false);
dark.addEventListener("change", () => draw(false));
window.addEventListener("beforeprint", () => draw(true));
window.addEventListener("afterprint", () => draw(false));
"""
