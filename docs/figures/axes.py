"""Draw axes.svg: what batch, layer, instance and group norm average over.

Run `python docs/figures/axes.py` after a change; a test compares the committed picture with this script.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SAMPLES, CHANNELS, POSITIONS = 4, 6, 4  # cells of the box along N, C and H·W
CELL = 24  # side of a cell on the front face
DEPTH_X, DEPTH_Y = 14, -11  # one step along N, drawn backwards and up
PANEL_WIDTH = 250
ORIGIN_X, ORIGIN_Y = 32, 100  # top left corner of the front face in its panel
TITLE_Y, LEGEND_Y = 30, 310
MARGIN = 12


class Panel(NamedTuple):
    """One norm: its name, what it averages over, and the cells that share the mean shown."""

    name: str
    over: str
    means: str
    samples: range
    channels: range
    group_edges: tuple[int, ...] = ()  # channels before which a group starts


PANELS = (
    Panel("Batch norm", "over N and H·W", "C means", range(SAMPLES), range(2, 3)),
    Panel("Layer norm", "over C and H·W", "N means", range(1), range(CHANNELS)),
    Panel("Instance norm", "over H·W", "N·C means", range(1), range(2, 3)),
    Panel("Group norm, G = 3", "over C/G channels and H·W", "N·G means", range(1), range(2, 4), (2, 4)),
)

# The card brings its own background, so the text stays readable on any page. Blue and grey differ in
# lightness as well as in hue, and the captions say the same in words.
STYLE = """
  .card { fill: #ffffff; stroke: #c8ccd0; }
  .cell { fill: #eceff1; stroke: #8a9299; stroke-width: 1; }
  .shared { fill: #0072b2; stroke: #ffffff; stroke-width: 1; }
  .group { stroke: #1f2328; stroke-width: 2.5; fill: none; }
  .axis { stroke: #1f2328; stroke-width: 1.4; fill: none; }
  .arrow { fill: #1f2328; }
  text { font-family: Helvetica, Arial, "DejaVu Sans", sans-serif; font-size: 14px; fill: #1f2328; }
  .title { font-size: 17px; font-weight: bold; }
  .middle { text-anchor: middle; }
  @media (prefers-color-scheme: dark) {
    .card { fill: #161b22; stroke: #3d444d; }
    .cell { fill: #2b323b; stroke: #737d88; }
    .shared { fill: #56b4e9; stroke: #161b22; }
    .group, .axis { stroke: #e6edf3; }
    .arrow, text { fill: #e6edf3; }
  }
""".strip("\n")


def corner(channel: float, position: float, sample: float) -> tuple[float, float]:
    """Where a grid point lies in its panel: C to the right, H·W down, N backwards."""
    return (ORIGIN_X + channel * CELL + sample * DEPTH_X, ORIGIN_Y + position * CELL + sample * DEPTH_Y)


def polygon(points: list[tuple[float, float]], css_class: str) -> str:
    """A closed outline."""
    joined = " ".join(f"{x:g},{y:g}" for x, y in points)
    return f'<polygon class="{css_class}" points="{joined}"/>'


def faces(panel: Panel) -> Iterator[str]:
    """The cells of the three visible faces; those that share the mean are drawn last, over the others."""
    cells = []
    for channel in range(CHANNELS):
        for position in range(POSITIONS):  # front: sample 0
            shared = channel in panel.channels and 0 in panel.samples
            steps = [(0, 0), (1, 0), (1, 1), (0, 1)]
            cells.append((shared, [corner(channel + a, position + b, 0) for a, b in steps]))
        for sample in range(SAMPLES):  # top: position 0
            shared = channel in panel.channels and sample in panel.samples
            steps = [(0, 0), (1, 0), (1, 1), (0, 1)]
            cells.append((shared, [corner(channel + a, 0, sample + b) for a, b in steps]))
    for position in range(POSITIONS):  # right: the last channel
        for sample in range(SAMPLES):
            shared = CHANNELS - 1 in panel.channels and sample in panel.samples
            steps = [(0, 0), (1, 0), (1, 1), (0, 1)]
            cells.append((shared, [corner(CHANNELS, position + a, sample + b) for a, b in steps]))
    for shared, points in sorted(cells, key=lambda cell: cell[0]):
        yield polygon(points, "shared" if shared else "cell")


def arrow(start: tuple[float, float], end: tuple[float, float]) -> str:
    """A straight axis with a head."""
    (x0, y0), (x1, y1) = start, end
    return f'<path class="axis" marker-end="url(#head)" d="M{x0:g},{y0:g} L{x1:g},{y1:g}"/>'


def text(x: float, y: float, words: str, css_class: str = "") -> str:
    """A line of text; `css_class` may name several classes."""
    attribute = f' class="{css_class}"' if css_class else ""
    return f'<text x="{x:g}" y="{y:g}"{attribute}>{words}</text>'


def axes() -> Iterator[str]:
    """The three arrows, each named."""
    left, bottom = corner(0, POSITIONS, 0)
    right, top = corner(CHANNELS, 0, 0)[0], corner(0, 0, 0)[1]
    yield arrow((left, bottom + 9), (right, bottom + 9))
    yield text((left + right) / 2, bottom + 25, "C", "middle")
    yield arrow((left - 9, top), (left - 9, bottom))
    middle = (top + bottom) / 2
    yield f'<g transform="translate({left - 16:g} {middle:g}) rotate(-90)">{text(0, 0, "H·W", "middle")}</g>'
    near, far = corner(CHANNELS, POSITIONS, 0), corner(CHANNELS, POSITIONS, SAMPLES)
    yield arrow((near[0] + 9, near[1] + 4), (far[0] + 9, far[1] + 4))
    yield text((near[0] + far[0]) / 2 + 14, (near[1] + far[1]) / 2 + 18, "N")


def drawn(panel: Panel) -> Iterator[str]:
    """One panel: title, box, axes, caption."""
    centre = PANEL_WIDTH / 2
    yield text(centre, TITLE_Y, panel.name, "title middle")
    yield from faces(panel)
    for channel in panel.group_edges:
        points = [corner(channel, POSITIONS, 0), corner(channel, 0, 0), corner(channel, 0, SAMPLES)]
        path = " L".join(f"{x:g},{y:g}" for x, y in points)
        yield f'<path class="group" d="M{path}"/>'
    yield from axes()
    bottom = corner(0, POSITIONS, 0)[1]
    yield text(centre, bottom + 54, panel.over, "middle")
    yield text(centre, bottom + 74, panel.means, "middle")


def picture() -> str:
    """The whole figure as SVG."""
    width, height = MARGIN * 2 + PANEL_WIDTH * len(PANELS), LEGEND_Y + 24
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-labelledby="title description">',
        '<title id="title">What batch, layer, instance and group norm average over</title>',
        '<desc id="description">Four boxes with axes N, C and H·W. The cells that share one mean are filled: '
        "in batch norm one channel of all samples; in layer norm all channels of one sample; in instance "
        "norm one channel of one sample; in group norm a group of channels of one sample.</desc>",
        f"<style>\n{STYLE}\n</style>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path class="arrow" d="M0,0 L8,4 L0,8 z"/></marker></defs>',
        f'<rect class="card" x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="8"/>',
    ]
    for index, panel in enumerate(PANELS):
        lines.append(f'<g transform="translate({MARGIN + index * PANEL_WIDTH} 0)">')
        lines.extend(drawn(panel))
        lines.append("</g>")
    lines.append(f'<rect class="shared" x="{MARGIN + 24}" y="{LEGEND_Y - 12}" width="14" height="14"/>')
    lines.append(
        text(
            MARGIN + 46,
            LEGEND_Y,
            "values that share one mean and one variance. N samples, C channels, H·W positions, G groups.",
        )
    )
    lines.append("</svg>")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path(__file__).with_suffix(".svg").write_text(picture(), encoding="utf-8")
