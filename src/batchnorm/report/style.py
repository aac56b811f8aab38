"""The page's style: light, dark and print; a column of contents beside the text, above it on a telephone."""

__all__ = ["STYLE"]

STYLE = """
:root { --ink: #1c1c1a; --soft: #595955; --paper: #ffffff; --line: #dededa; --panel: #f7f7f4;
  --good: #00694d; --bad: #a33f00; --open: #6b5200; --link: #005a8f; --shade: #00000038; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #e9e9e6; --soft: #ababa6; --paper: #161719; --line: #3a3b3e; --panel: #1f2023;
    --good: #4fd1a8; --bad: #ff9a5c; --open: #f2c74b; --link: #7cc4f2;
    --shade: #ffffff4d; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-padding-top: 1.2rem; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 106.25%/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 54rem; min-width: 0; margin: 0 auto; padding: 1.5rem 1.4rem 3rem; overflow-wrap: anywhere; }
h1 { font-size: min(2.1rem, 12vw); line-height: 1.2; letter-spacing: -.01em; margin: .8rem 0 .6rem;
  text-wrap: balance; }
h2 { font-size: min(1.5rem, 10vw); line-height: 1.3; margin: 0 0 .8rem; text-wrap: balance; }
h3 { font-size: 1.05rem; line-height: 1.35; margin: 2rem 0 .4rem; }
section { border-top: 1px solid var(--line); padding-top: 2.2rem; margin-top: 3rem; }
p { margin: .6rem 0; }
p, dl, h3 { max-width: 42rem; }
.lead { color: var(--soft); font-size: 1.12rem; }
a { color: var(--link); text-underline-offset: .15em; }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
.badge { display: inline-block; border: 1.5px solid currentColor; border-radius: 1em; padding: 0 .6em;
  font-size: .8rem; line-height: 1.5; font-weight: 650; letter-spacing: 0;
  vertical-align: middle; max-width: 100%; text-wrap: balance; }
h2 .badge { font-size: .86rem; position: relative; top: -.1em; }
.good { color: var(--good); } .bad { color: var(--bad); } .open { color: var(--open); }
dl { margin: .8rem 0; display: grid; grid-template-columns: 9.5rem minmax(0, 1fr); gap: .45rem 1rem; }
dt { color: var(--soft); } dd { margin: 0; }
pre { background: var(--panel); border-radius: .5rem; padding: .7rem .9rem; margin: .8rem 0; font-size: .86rem;
  white-space: pre-wrap; }
.skip { position: absolute; left: .5rem; top: -10rem; z-index: 9; padding: .5rem .9rem; background: var(--paper); }
.skip:focus { top: .5rem; }
main:focus { outline: none; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0; font-size: .93rem; line-height: 1.45;
  font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .5rem .9rem .5rem 0; overflow-wrap: break-word;
  min-width: 6.6rem; border-bottom: 1px solid var(--line); }
th { font-weight: inherit; } thead th { color: var(--soft); font-weight: 600; }
@media (min-width: 38.76em), print { td:has(.badge) { min-width: 9.4rem; } }
.formula { display: flex; flex-wrap: wrap; align-items: center; gap: .9rem 2.6rem; margin: 1.2rem 0;
  padding: .3rem 0 .3rem 1.2rem; border-left: 3px solid var(--line); }
.formula .part { max-width: 100%; overflow-x: auto; overflow-y: hidden; padding: .25rem 0;
  scrollbar-width: thin; }
/* What is cut off says so: a shade at its edge, which the formula's own ground covers where it ends. */
@media screen { .formula .part { background:
  linear-gradient(to right, var(--paper) 40%, transparent) left / 2.6rem 100% no-repeat local,
  linear-gradient(to left, var(--paper) 40%, transparent) right / 2.6rem 100% no-repeat local,
  linear-gradient(to right, var(--shade), transparent) left / 1.1rem 100% no-repeat scroll,
  linear-gradient(to left, var(--shade), transparent) right / 1.1rem 100% no-repeat scroll; } }
math { font-size: 1.18em; text-align: left;
  font-family: "STIX Two Math", "Cambria Math", "Latin Modern Math", "DejaVu Math TeX Gyre", math; }
math mtext { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  font-size: .84em; }
math[display="block"] { width: max-content; margin: 0; }
figure { margin: 1.6rem 0; padding: 1rem 1.1rem .7rem; background: var(--panel); border-radius: .6rem; }
figcaption { font-weight: 640; line-height: 1.4; margin-bottom: .5rem; text-wrap: pretty; }
.chart { width: 100%; overflow: clip; }
/* Names may stand on lines: a rim in the ground's colour keeps them readable. */
.chart .annotation text { paint-order: stroke; stroke: var(--panel); stroke-width: 4px; stroke-linejoin: round; }
.axis { max-width: none; color: var(--soft); font-size: .84rem; line-height: 1.35; margin: 0; }
.axis.x { text-align: center; }
.note { max-width: none; color: var(--soft); font-size: .86rem; line-height: 1.45; margin: .5rem 0 .3rem; }
.note:empty, .axis:empty { margin: 0; }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr)); gap: 1rem 1.4rem; }
.panels.three { grid-template-columns: repeat(auto-fit, minmax(min(100%, 13.5rem), 1fr)); gap: 1rem; }
.panel { display: grid; grid-row: span 5; grid-template-rows: subgrid; gap: .25rem; min-width: 0; }
.panel > .name { max-width: none; font-size: .92rem; line-height: 1.4; font-weight: 600; margin: 0 0 .2rem; }
.panel > * { grid-column: 1; min-width: 0; } .panel > .y { align-self: end; }
.back { font-size: .92rem; margin-top: 1.6rem; }
footer { color: var(--soft); font-size: .86rem; margin-top: 3rem; }

/* The contents: a bar that opens on a narrow screen, a column that stays on a wide one. */
nav { position: sticky; top: 0; z-index: 5; background: var(--paper); border-bottom: 1px solid var(--line);
  font-size: .92rem; line-height: 1.4; }
nav summary { display: flex; gap: .7rem; align-items: baseline; padding: .6rem 1.1rem; cursor: pointer; }
nav summary::before { content: "☰"; } nav details[open] summary::before { content: "✕"; }
nav summary b { font-weight: 620; }
nav summary span { color: var(--soft); overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
nav ol { list-style: none; margin: 0; padding: .3rem .6rem .8rem; max-height: 75vh; overflow-y: auto;
  position: absolute; left: 0; right: 0; background: var(--paper); border-bottom: 1px solid var(--line); }
nav a { display: grid; grid-template-columns: 1.1rem minmax(0, 1fr); gap: .35rem; padding: .38rem .5rem;
  color: var(--ink); text-decoration: none; border-radius: .4rem; overflow-wrap: anywhere; }
nav a:hover { background: var(--panel); }
nav a[aria-current] { background: var(--panel); font-weight: 620; }
nav i { font-style: normal; font-weight: 700; text-align: center; }
@media screen and (min-width: 70em) {
  body { display: grid; grid-template-columns: 17.5rem minmax(0, 1fr); }
  nav { height: 100vh; border: 0; border-right: 1px solid var(--line); font-size: .86rem; }
  nav details { height: 100%; display: flex; flex-direction: column; }
  nav summary { padding: 1.5rem 1.1rem .6rem; cursor: default; }
  nav summary::before, nav details[open] summary::before, nav summary span { content: none; display: none; }
  nav ol { max-height: calc(100vh - 4.2rem); position: static; border: 0; padding-top: 0; }
  main { margin: 0; padding-left: 2.6rem; width: 100%; } }
@media screen and (min-width: 87.5em) { main { margin: 0 auto; } }
@media screen and (max-width: 69.99em) { html { scroll-padding-top: 3.6rem; } }

@media screen and (max-width: 38.75em) {
  body { font-size: 100%; }
  main { padding: .6rem .9rem 2rem; }
  h1 { font-size: min(1.7rem, 9.5vw); } h2 { font-size: min(1.3rem, 8.5vw); }
  figure { margin-left: -.9rem; margin-right: -.9rem; border-radius: 0; padding: .8rem .5rem .5rem; }
  figcaption, .note, .axis, .panel > .name { padding: 0 .4rem; }
  dl { grid-template-columns: minmax(0, 1fr); gap: 0; } dd { margin-bottom: .6rem; }
  thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
  tr { display: block; border-bottom: 1px solid var(--line); padding: .55rem 0; }
  tbody, table { display: block; } table { position: relative; }
  td { display: grid; grid-template-columns: 6rem minmax(0, 1fr); gap: .6rem; border: 0; padding: .12rem 0;
    min-width: 0; overflow-wrap: anywhere; }
  /* Seen and not heard: who hears the table is told its columns' names as it is. */
  td::before { content: attr(data-label); content: attr(data-label) / ""; color: var(--soft); }
  th.first { display: block; border: 0; font-weight: 620; padding: .12rem 0 .2rem; min-width: 0;
    overflow-wrap: anywhere; }
  td .badge { justify-self: start; }
  td:has(> span:empty) { display: none; }
  .formula { flex-direction: column; align-items: flex-start; padding-left: .8rem; } math { font-size: 1.08em; } }

@page { margin: 15mm; }
@media print {
  nav, .back, .skip { display: none; }
  html { font-size: 12.5px; } body { font-size: 1rem; line-height: 1.42; } main { max-width: none; padding: 0; }
  h3 { margin-top: 1.3rem; } dl, pre, table, .formula { margin: .6rem 0; } p { margin: .45rem 0; }
  p, dl, h3 { max-width: none; }
  th, td { padding-top: .28rem; padding-bottom: .28rem; }
  .chart .annotation text { stroke: #ffffff; }
  a { color: inherit; text-decoration: none; }
  section { margin-top: 1.4rem; padding-top: 1.1rem; }
  figure { break-inside: avoid; background: none; border: 1px solid var(--line); padding: .5rem .7rem .3rem;
    margin: .8rem 0; }
  .panels { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: .5rem .8rem; }
  .panels.three { grid-template-columns: repeat(3, minmax(0, 1fr)); }
  h1, h2, h3 { break-inside: avoid; break-after: avoid; } tr, .formula, pre { break-inside: avoid; }
  p { orphans: 3; widows: 3; } }
"""
