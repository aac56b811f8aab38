"""A page with every kind of block and chart, whose texts try to be markup, and one with long names."""

import math

from batchnorm.report import (
    Code,
    Contours,
    Counts,
    Curves,
    Entries,
    Entry,
    Fold,
    Formula,
    Heading,
    Intervals,
    Line,
    Lines,
    Link,
    Panels,
    Picture,
    Pictures,
    Row,
    Section,
    Series,
    Small,
    Table,
    render,
)

EVIL = "</script><script>alert('x')</script><img src=http://evil.example/x>"
LONG = "A name that goes on for much longer than any telephone is wide, withoutaplacetobreakitatallforalongwhile"
FORMULA = r"\left\lVert \frac{\partial \mathcal{L}}{\partial z} \right\rVert \propto g^{L} \qquad " + r"a + " * 60 + "b"

GRID = [float(place) for place in range(-5, 6)]


def charts(name: str) -> list[Curves | Intervals | Contours]:
    """One chart of every kind, and every kind of line."""
    kinds = [
        Series(name, [1, 2, 3], [1, math.nan, 3], 1, [0, 1, 2], [2, 3, 4]),
        Series(name, [1, 2, 3], [3, 2.9, 3.01], 2, dash="dash", markers=True),
        Series(name, [1, 2, 3], [0, 1, 3.02], 3, line=False),
        Series("", [1, 3], [1, 1], 0, dash="dot"),
        Series(name, [1, 2], [2, 2], 4),
    ]
    bars = [Series(name, [0, 1, 2], [1, 3, 0], 5, shape="step", fill=True)]
    bars += [Series("other", [0, 1, 2], [1, 2.9, 0], 6, shape="step", fill=True)]
    heights = [[x * x + 9 * y * y for x in GRID] for y in GRID]
    descent = [Series(name, [-4, -2, -1], [4, -2, 1], 2), Series("two", [-4, 3], [4, 3], 3)]
    return [
        Curves(name, name, name, kinds, log_x=True, note=name),
        Curves(name, name, name, bars),
        Curves(name, name, name, [Series(name, [1, 2], [1e-7, 1e7], 1)], log_y=True, x_ticks=[1, 2]),
        Intervals(name, name, [Row(name, 0.5, 0.4, 0.6), Row("b", 1, -math.inf, math.inf)], 1.0, name, log_x=True),
        Contours(name, name, name, name, GRID, GRID, heights, [1, 4, 16, 64, 200], descent),
    ]


def entries(name: str) -> Entries:
    """A list of two, one of them marked, with every kind of small picture."""
    kinds = [
        Series("", [0, 1, 2, 3], [0, 1, 3, 0], 1, shape="step", fill=True),
        Series("", [0, 1, 2, 3], [0, 2, 1, 0], 2, shape="step", dash="dash"),
        Series("", [0, 3], [1, 1], 0, dash="dot"),
        Series("", [0.5, math.nan, 9], [1, 1, math.inf], 3, line=False),
        Series("", [0, 1, 2, 3], [1, math.nan, 2, 1], 4),
    ]
    drawn = Small(name, name, kinds, (0, 3), (0, 3), (name, name), (name, name), name, (name, name))
    both = (drawn, Small(name, name, empty=name))
    one = Entry(name, "entry-1", name, ((name, "bad"), (name, "")), both, name, (name,), True, name)
    return Entries([one, Entry(name, "entry-2", pictures=both)], only=name)


def pictures(name: str) -> Pictures:
    """Grey and coloured images in two rows."""
    grey = [[[x / 4 - 0.1] for x in range(6)] for _ in range(4)]
    coloured = [[[x / 5, y / 3, math.nan] for x in range(6)] for y in range(4)]
    return Pictures(name, [[Picture(name, grey)] * 3, [Picture(name, coloured)] * 3], name)


def glance(name: str) -> Lines:
    """A line for every chart, and one without a picture."""
    shown = [*charts(name), Panels(name, charts(name)), pictures(name), None]
    return Lines(name, [Line(name, "one", name, "good", name, name, name, picture) for picture in shown], "glance")


def page(name: str) -> str:
    """A page that shows all there is, with one text everywhere."""
    drawn = charts(name)
    table = Table((name, "verdict", "long"), [(name, name, LONG)], ["good"], ["one"])
    blocks = (name, (name, name), (name, name), name, Heading(name, "heading"), Formula(FORMULA), table, *drawn)
    more = (Panels(name, [drawn[1], drawn[4]], note=name), Code(name), Link(name, "one"))
    more += (Heading(name, "marked", ((name, "open"),)), Fold(name, (name, Code(name))), entries(name))
    more += (pictures(name), Counts([(2, name, "good"), (1, name, "")]), glance(name))
    sections = [Section(name, "one", name, "good", blocks), Section(name, "two", name, "bad", more), Section(name)]
    return render(name, name, sections, footer=name)
