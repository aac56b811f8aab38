"""A laid-out chart, as :mod:`batchnorm.report.plot` describes it to plotly, drawn with matplotlib."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ..palette import LIGHT, LIGHT_WORDS
from ..plot import Drawing
from .text import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Sheet

__all__ = ["INK", "SOFT", "draw"]

INK, SOFT, _LINES = "#1c1c1a", "#595955", "#deded9"
_DASHES: dict[str, Any] = {"solid": "-", "dash": (0, (4.2, 2.4)), "dot": (0, (1.3, 1.7))}
_MARKS = {"circle": "o", "square": "s", "diamond": "D", "triangle-up": "^"}
_LETTERS, _SMALL = 13.0, 11.0
# Of plotly's anchors, those that matplotlib calls otherwise.
_VERTICAL = {"middle": "center", "auto": "center"}
_SHARE = 0.18  # of a tint's colour, as on the page


def draw(sheet: Sheet, drawing: Drawing, place: tuple[float, float, float], size: tuple[float, float]) -> None:
    """Draws a chart.

    Args:
        sheet: On what.
        drawing: The chart, laid out.
        place: Its left edge, its top and its width, in pixels from the sheet's upper left corner.
        size: The sheet's width and height in pixels.
    """
    left, top, width = place
    layout = drawing["layout"]
    margin, high = layout["margin"], layout["height"]
    wide, tall = width - margin["l"] - margin["r"], high - margin["t"] - margin["b"]
    axes = sheet.add_axes(
        (
            (left + margin["l"]) / size[0],
            1 - (top + high - margin["b"]) / size[1],
            wide / size[0],
            tall / size[1],
        )
    )
    _frame(axes, layout, wide)
    for shape in layout.get("shapes", ()):
        ends = ([shape["x0"], shape["x1"]], [shape["y0"], shape["y1"]])
        axes.plot(*ends, color=LIGHT[0], linewidth=1.5, linestyle=_DASHES["dot"], zorder=1)
    for level, trace in enumerate(drawing["data"]):
        _trace(axes, trace, 2 + level / 100)
    for note in layout["annotations"]:
        _note(axes, note, layout)


def _frame(axes: Axes, layout: Drawing, wide: float) -> None:
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_facecolor("none")
    axes.set_axisbelow(True)
    for name, axis in (("xaxis", axes.xaxis), ("yaxis", axes.yaxis)):
        given = layout[name]
        low, high = given["range"]
        log = given.get("type") == "log"
        ends = (10.0**low, 10.0**high) if log else (low, high)
        if name == "xaxis":
            axes.set_xscale("log" if log else "linear")
            axes.set_xlim(*ends)
        else:
            axes.set_yscale("log" if log else "linear")
            axes.set_ylim(*ends)
        if given.get("visible") is False:
            axis.set_visible(False)
            continue
        _ticks(axis, given, wide if name == "xaxis" else math.inf)
        axis.set_tick_params(which="both", length=0, labelsize=_LETTERS - 1, labelcolor=INK, pad=5)
        if given.get("showgrid", True):
            axis.grid(True, which="major", color=_LINES, linewidth=1)


def _ticks(axis: Any, given: Drawing, wide: float) -> None:
    from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, MaxNLocator, NullLocator  # noqa: PLC0415

    from ..number import spoken  # noqa: PLC0415

    axis.set_minor_locator(NullLocator())
    if "tickvals" not in given:
        axis.set_major_locator(MaxNLocator(max(3, int(min(6, wide / 75))), steps=[1, 2, 5, 10]))
        axis.set_major_formatter(FuncFormatter(lambda value, _: spoken(value, 6) if abs(value) > 1e-12 else "0"))
        return
    low, high = given["range"]
    log = given.get("type") == "log"
    at, names, last = [], [], -math.inf
    for value, text in zip(given["tickvals"], map(plain, given["ticktext"]), strict=True):
        share = ((math.log10(value) if log else value) - low) / (high - low)
        # Where numbers would touch each other, one is left out.
        half = 4.2 * len(text)
        if not 0 <= round(share, 9) <= 1 or (wide < math.inf and share * wide - half < last):
            continue
        last = share * wide + half + 6
        at.append(value)
        names.append(text)
    axis.set_major_locator(FixedLocator(at))
    axis.set_major_formatter(FixedFormatter(names))


def _trace(axes: Axes, trace: Drawing, level: float) -> None:
    meta = trace["meta"]
    color = LIGHT[meta["color"] % len(LIGHT)]
    if meta.get("surface"):
        _surface(axes, trace, color)
        return
    x, y = _floats(trace["x"]), _floats(trace["y"])
    if meta.get("band"):
        axes.fill(x, y, facecolor=color, alpha=_SHARE, linewidth=0, zorder=level)
        return
    marker = trace.get("marker", {})
    if marker.get("opacity") == 0:  # what is only there for the pointer
        return
    line = trace.get("line", {})
    if "lines" in trace["mode"]:
        steps = line.get("shape") == "hv"
        axes.plot(
            x,
            y,
            color=color,
            linewidth=line.get("width", 2.5),
            linestyle=_DASHES[line.get("dash", "solid")],
            drawstyle="steps-post" if steps else "default",
            solid_joinstyle="round",
            zorder=level,
        )
        if meta.get("fill"):
            axes.fill_between(x, y, 0, step="post" if steps else None, color=color, alpha=_SHARE, linewidth=0, zorder=1)
    if "error_x" in trace:
        error = trace["error_x"]
        low, high = x[0] - error["arrayminus"][0], x[0] + error["array"][0]
        axes.plot([low, high], [y[0], y[0]], color=color, linewidth=2.5, marker="|", markersize=10, zorder=level)
    if "markers" in trace["mode"]:
        symbol = marker.get("symbol", "circle")
        hollow = symbol.endswith("-open")
        axes.plot(
            x,
            y,
            linestyle="none",
            marker=_MARKS[symbol.removesuffix("-open")],
            markersize=marker["size"],
            alpha=marker.get("opacity", 1),
            markerfacecolor="none" if hollow else color,
            markeredgecolor=color if hollow or not meta.get("edge") else "white",
            markeredgewidth=marker.get("line", {}).get("width", 0) if hollow else 1 if meta.get("edge") else 0,
            zorder=level,
        )


def _surface(axes: Axes, trace: Drawing, color: str) -> None:
    from matplotlib.colors import LinearSegmentedColormap, to_rgb  # noqa: PLC0415

    def mixed(share: float) -> tuple[float, ...]:
        return tuple(share * part + (1 - share) for part in to_rgb(color))

    z = np.array([[math.nan if value is None else value for value in row] for row in trace["z"]])
    levels = np.arange(trace["contours"]["start"], trace["contours"]["end"] + 1)
    tints = LinearSegmentedColormap.from_list("ground", [mixed(0.45), mixed(0.03)])
    filled = [-1, *levels, levels[-1] + 1]
    x, y = trace["x"], trace["y"]
    axes.contourf(x, y, z, levels=filled, cmap=tints, vmin=-1, vmax=trace["zmax"], zorder=1)
    axes.contour(x, y, z, levels=levels, colors=[mixed(0.6)], linewidths=1, zorder=1.1)


def _note(axes: Axes, note: Drawing, layout: Drawing) -> None:
    index = note["meta"]["color"]
    small = note["meta"].get("small", False)
    shift = (note.get("xshift", 0), note.get("yshift", 0))
    arrow: dict[str, Any] | None = None
    if note["showarrow"]:
        # Text stands where the leader ends, which leads back to the line.
        shift = (note["ax"], -note["ay"])
        arrow = {"arrowstyle": "-", "color": LIGHT[index % len(LIGHT)], "linewidth": 1, "shrinkA": 1, "shrinkB": 3}
        arrow["relpos"] = (0.0, 0.5)
    text = plain(note["text"])
    paper = note.get("xref") == "paper"
    x = 10.0 ** note["x"] if layout["xaxis"].get("type") == "log" and not paper else note["x"]
    y = 10.0 ** note["y"] if layout["yaxis"].get("type") == "log" else note["y"]
    across = axes.transAxes if paper else axes.transData
    vertical = note.get("yanchor", "middle")
    axes.annotate(
        text,
        xy=(x, y),
        xycoords=(across, axes.transData),
        xytext=shift,
        textcoords="offset points",
        ha=note.get("xanchor", "center"),
        va=_VERTICAL.get(vertical, vertical),
        fontsize=_SMALL if small else _LETTERS - 1,
        color=INK if index < 0 else LIGHT_WORDS[index % len(LIGHT_WORDS)],
        fontweight="bold" if "<b>" in note["text"] else "normal",
        arrowprops=arrow,
        multialignment=note.get("align", "left"),
        linespacing=1.15,
        annotation_clip=False,
        zorder=9,
    )


def _floats(values: list[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]
