"""Draw cpu.svg: how much faster the layers are than others on a CPU, from the rows of benchmarks/cpu.csv.

Run `python docs/figures/cpu.py` after `python benchmarks/cpu.py` (which does so itself); nothing is timed here, and a
test compares the committed picture with this script.
"""

import math
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from statistics import median

from batchnorm.bench.row import Row, read
from batchnorm.bench.summary import side_by_side

CSV = Path(__file__).parents[2] / "benchmarks" / "cpu.csv"

PEERS = {"eager": "torch eager", "compile": "torch.compile", "jax": "JAX"}
MODES = {
    "norm+act": "norm + activation",
    "norm+add+act": "norm + add + activation",
    "norm": "norm alone",
    "evaluation": "evaluation",
}

WIDTH, LEFT, RIGHT, TOP = 820, 150, 70, 74  # pixels; names stand left of the axis, medians right of it
LINE, GAP, TITLE = 22, 12, 22  # heights of a line of dots, between groups, of a group's name
FOOT = 62

# The card brings its own background, so the text stays readable on any page.
STYLE = """
  .card { fill: #ffffff; stroke: #c8ccd0; }
  .dot { fill: #0072b2; fill-opacity: 0.35; }
  .median { stroke: #0072b2; stroke-width: 3; }
  .grid { stroke: #d8dee4; stroke-width: 1; }
  .one { stroke: #1f2328; stroke-width: 1.4; stroke-dasharray: 4 3; }
  text { font-family: Helvetica, Arial, "DejaVu Sans", sans-serif; font-size: 13px; fill: #1f2328; }
  .title { font-size: 17px; font-weight: bold; }
  .group { font-weight: bold; }
  .middle { text-anchor: middle; }
  .end { text-anchor: end; }
  @media (prefers-color-scheme: dark) {
    .card { fill: #161b22; stroke: #3d444d; }
    .dot { fill: #56b4e9; }
    .median { stroke: #56b4e9; }
    .grid { stroke: #2b323b; }
    .one { stroke: #e6edf3; }
    text { fill: #e6edf3; }
  }
""".strip("\n")


def groups(rows: Sequence[Row]) -> dict[str, dict[str, list[float]]]:
    """Ratios by kind of case and peer; kinds and peers without any are left out."""
    found: dict[str, dict[str, list[float]]] = {}
    for mode, words in MODES.items():
        for beside in (False, True):
            kind = f"{words}, {'channels-last and (N, C)' if beside else 'contiguous'}"
            for peer in PEERS:
                ratios = [
                    row.ratio
                    for row in rows
                    if row.contender == peer
                    and row.mode == mode
                    and row.ratio is not None
                    and side_by_side(row) == beside
                ]
                if ratios:
                    found.setdefault(kind, {})[peer] = ratios
    return found


def text(x: float, y: float, words: str, css_class: str = "") -> str:
    """A line of text; `css_class` may name several classes."""
    attribute = f' class="{css_class}"' if css_class else ""
    return f'<text x="{x:g}" y="{y:g}"{attribute}>{escape(words)}</text>'


class Axis:
    """A logarithmic axis whose ends are powers of two."""

    def __init__(self, values: Sequence[float]) -> None:
        self.low = math.floor(min(math.log2(min(values)), -1))
        self.high = math.ceil(max(math.log2(max(values)), 2))

    def at(self, value: float) -> float:
        """Pixels from the left."""
        share = (math.log2(value) - self.low) / (self.high - self.low)
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def ticks(self) -> list[float]:
        """Powers of two, 1 among them, about nine at most."""
        step = math.ceil((self.high - self.low) / 8)
        return [2.0**power for power in range(self.low, self.high + 1) if power % step == 0]


def strip(ratios: Sequence[float], peer: str, y: float, axis: Axis) -> Iterator[str]:
    """One peer in one group: a dot a case, the median as a stroke and a number."""
    yield text(LEFT - 12, y + 5, PEERS[peer], "end")
    for ratio in sorted(ratios):
        yield f'<circle class="dot" cx="{axis.at(ratio):g}" cy="{y:g}" r="4"/>'
    middle = median(ratios)
    yield f'<line class="median" x1="{axis.at(middle):g}" x2="{axis.at(middle):g}" y1="{y - 8:g}" y2="{y + 8:g}"/>'
    yield text(WIDTH - RIGHT + 14, y + 5, f"{middle:.1f}×")


def drawn(rows: Sequence[Row]) -> str:
    """The whole figure as SVG."""
    kinds = groups(rows)
    axis = Axis([ratio for peers in kinds.values() for ratios in peers.values() for ratio in ratios] or [1.0])
    body: list[str] = []
    y = float(TOP)
    for kind, peers in kinds.items():
        body.append(text(LEFT - 12 - 126, y + TITLE - 8, kind, "group"))
        y += TITLE
        for peer, ratios in peers.items():
            body.extend(strip(ratios, peer, y + LINE / 2, axis))
            y += LINE
        y += GAP
    grid = [
        f'<line class="{"one" if tick == 1 else "grid"}" x1="{axis.at(tick):g}" x2="{axis.at(tick):g}" '
        f'y1="{TOP:g}" y2="{y:g}"/>'
        for tick in axis.ticks()
    ]
    labels = [text(axis.at(tick), y + 16, f"{tick:,.4g}×", "middle") for tick in axis.ticks()]
    height = y + FOOT
    cases = len({row.case for row in rows if row.ratio is not None})
    environment = rows[-1].environment if rows else None
    where = (
        ""
        if environment is None
        else (
            f"{environment.processor}, {environment.threads} threads, {environment.instruction_set}, "
            f"torch {environment.torch}, {environment.date}"
        )
    )
    told = "; ".join(
        f"{kind}: " + ", ".join(f"{median(ratios):.1f} by {PEERS[peer]}" for peer, ratios in peers.items())
        for kind, peers in kinds.items()
    )
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" '
        f'height="{height:g}" role="img" aria-labelledby="title description">',
        '<title id="title">Time of others by time of batchnorm on a CPU</title>',
        f'<desc id="description">{escape(f"A dot a case, {cases} cases; medians of the ratios: {told}.")}</desc>',
        f"<style>\n{STYLE}\n</style>",
        f'<rect class="card" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1:g}" rx="8"/>',
        text(WIDTH / 2, 28, "Time of others ÷ time of batchnorm", "title middle"),
        text(WIDTH / 2, 50, f"one dot a case ({cases}); the stroke and the number are the median", "middle"),
        *grid,
        *body,
        *labels,
        text(WIDTH / 2, y + 42, where, "middle"),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def picture() -> str:
    """The figure of the committed rows."""
    return drawn(read(CSV))


if __name__ == "__main__":
    Path(__file__).with_suffix(".svg").write_text(picture(), encoding="utf-8")
