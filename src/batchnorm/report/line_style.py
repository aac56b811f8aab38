"""The style of an overview, which is read from far away, and of images."""

__all__ = ["LINE_STYLE"]

LINE_STYLE = """
.counts { display: flex; flex-wrap: wrap; gap: .3rem 2.4rem; max-width: none; margin: 1rem 0 0;
  font-size: clamp(1.3rem, .7rem + .9vw, 1.9rem); }
.counts b { font-size: 2.3em; line-height: 1.15; font-weight: 680; font-variant-numeric: tabular-nums; }
/* The larger the screen, the larger the type: it may be the wall of a room. */
.lines { margin: 2.2rem 0 0; }
.lines h3 { font-size: min(clamp(1.6rem, 1rem + 1vw, 2.3rem), 10vw); max-width: none; margin: 0 0 .2rem; }
.lines ul { list-style: none; margin: 0; padding: 0; }
.lines li { display: grid; grid-template-columns: minmax(0, 1fr) 9.5rem; grid-template-rows: auto 1fr; gap: 0 1.6rem;
  padding: .8rem 0 .85rem; border-bottom: 1px solid var(--line); break-inside: avoid; }
.lines p { max-width: none; margin: 0; }
.lines .to { font-size: clamp(1.3rem, .7rem + .9vw, 1.9rem); line-height: 1.3; font-weight: 640; }
.lines .to a { text-decoration-thickness: 1px; }
.lines .to .badge { font-size: max(.86rem, .66em); margin-left: .35em; position: relative; top: -.1em; }
.lines .fact { font-size: clamp(1.1rem, .65rem + .65vw, 1.5rem); line-height: 1.4; margin-top: .2rem;
  text-wrap: pretty; }
.lines .fact b { font-weight: 680; } .lines .rest { color: var(--soft); }
.lines .sketch { grid-column: 2; grid-row: 1 / span 2; height: 4.6rem; margin: .15rem 0 0; }
.lines .sketch path { stroke-width: 1.8px; } .lines .sketch .dots { stroke-width: 5px; }
.glance > p { font-size: clamp(1.2rem, .7rem + .7vw, 1.6rem); line-height: 1.45; max-width: none; }

.rows { display: grid; gap: 1rem; }
.images { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(46%, 7rem), 1fr)); gap: .7rem .9rem; }
.image { min-width: 0; max-width: 20rem; } .image p { max-width: none; margin: .25rem 0 0; font-size: .86rem;
  line-height: 1.35; color: var(--soft); }
.image img { display: block; width: 100%; height: auto; image-rendering: pixelated; }

@media screen and (max-width: 38.75em) {
  .counts { gap: .1rem 1.4rem; font-size: 1.1rem; } .counts b { font-size: 1.8em; }
  .lines li { grid-template-columns: minmax(0, 1fr); padding: .7rem 0; }
  .lines .to { font-size: 1.12rem; } .lines .fact { font-size: 1rem; } .glance > p { font-size: 1.06rem; }
  .lines .sketch { grid-column: 1; grid-row: auto; height: 3.4rem; margin-top: .4rem; } }
@media print { .lines .to { font-size: 1.1rem; } .lines .fact { font-size: 1rem; } .lines { margin-top: 1.2rem; }
  .lines li { padding: .4rem 0; } .image { break-inside: avoid; max-width: 13rem; } }
"""
