"""The style of long lists with small pictures, which grow when an entry is unfolded."""

from .palette import DARK, LIGHT

__all__ = ["ENTRY_STYLE"]


def _variables(palette: tuple[str, ...]) -> str:
    return " ".join(f"--c{number}: {color};" for number, color in enumerate(palette))


_COLORS = "\n".join(f".sketch .c{number} {{ --c: var(--c{number}); }}" for number in range(len(LIGHT)))

ENTRY_STYLE = (
    f":root {{ {_variables(LIGHT)} }}\n"
    f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {_variables(DARK)} }} }}\n"
    f"{_COLORS}\n"
    """
/* An entry that is far away is not laid out; its height is guessed, and remembered once it was seen. */
.entry { border-top: 1px solid var(--line); padding: .9rem 0 .8rem; content-visibility: auto;
  contain-intrinsic-size: auto 11.5rem; }
.entry h3 { margin: 0 0 .5rem; max-width: none; }
.entry h3 .about { color: var(--soft); font-weight: 400; font-size: .9rem; margin-left: .35em; }
.entry h3 .number { color: var(--soft); font-weight: 400; margin-right: .3em; font-variant-numeric: tabular-nums; }
.entry h3 .badge { margin-left: .3em; }
.entry:target h3 { box-shadow: -.5rem 0 var(--paper), -.75rem 0 var(--link); }
.entries:has(.only input:checked) .entry:not(.marked, :target) { display: none; }
.only label { cursor: pointer; } .only input { width: 1.05em; height: 1.05em; vertical-align: -.12em; }
.smalls { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 6.9rem), 1fr)); gap: .6rem .9rem; }
.small { min-width: 0; display: grid; grid-template-rows: auto auto auto 1fr; }
.small p { margin: 0; color: var(--soft); font-size: .76rem; line-height: 1.35; max-width: none; }
.small .name { color: var(--ink); font-weight: 600; }
.small .none { align-self: start; padding-top: .3rem; }
.sketch { position: relative; height: 3.3rem; margin: .2rem 0 .15rem; background: var(--panel);
  border-bottom: 1px solid var(--soft); }
.sketch svg { display: block; width: 100%; height: 100%; overflow: visible; }
.sketch path { fill: none; stroke: var(--c); stroke-width: 1.3px; vector-effect: non-scaling-stroke;
  stroke-linejoin: round; }
.sketch .area { fill: var(--c); stroke: none; opacity: .18; }
.sketch .dots { stroke-width: 3px; stroke-linecap: round; }
.sketch .dash { stroke-dasharray: 4 2.5; } .sketch .dot { stroke-dasharray: 1.3 2.4; }
.sketch span { position: absolute; left: .3rem; font-size: .72rem; line-height: 1; color: var(--soft); display: none; }
.sketch .high { top: .3rem; } .sketch .low { bottom: .3rem; }
.ends { display: flex; justify-content: space-between; gap: .3rem; font-variant-numeric: tabular-nums; }
.ends span { white-space: nowrap; }
.ends i { font-style: normal; display: none; text-align: center; }
.small .caption { font-variant-numeric: tabular-nums; }
.entry summary { cursor: pointer; color: var(--link); font-size: .86rem; width: max-content; max-width: 100%;
  margin-top: .35rem; }
.fold > summary { cursor: pointer; color: var(--link); width: max-content; max-width: 100%; margin: .6rem 0; }
.entry:has(details[open]) .smalls { gap: 1.2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 16rem), 1fr)); }
.entry:has(details[open]) .sketch { height: 11rem; }
.entry:has(details[open]) .small p { font-size: .84rem; }
.entry:has(details[open]) .sketch path { stroke-width: 1.8px; }
.entry:has(details[open]) .sketch .dots { stroke-width: 4.5px; }
.entry:has(details[open]) :is(.sketch span, .ends i) { display: inline; }
.entry details { font-size: .93rem; } .entry details table { font-size: 1em; }
.entry th, .entry td { min-width: 4.6rem; padding-top: .3rem; padding-bottom: .3rem; }
h3 .badge { font-size: .78rem; }
@media print { .entry { content-visibility: visible; break-inside: avoid; } .only, .entry details { display: none; }
  .smalls { grid-template-columns: repeat(6, minmax(0, 1fr)); } .sketch { background: none; } }
"""
)
