"""The pictures of a norm: what comes in, what it makes of it, and by which numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from ...report import Series, Small, spoken
from ..evidence import Layer, LayerRun
from ..histogram import Histogram
from .channels import Numbers, affine, dead, drift, finite, pooled, saturated, shown_run, span
from .words import counted

__all__ = ["POINTS", "pictures"]

#: At most so many channels are drawn as points or along a curve; of more, every k-th in order of size.
POINTS = 160

# Colours: data in training mode, data in evaluation mode, a baseline.
_TRAINING, _EVALUATION, _BASELINE = 1, 2, 0
# Bins that a picture so small can show.
_BINS = 48
# Ends of a distribution that are lower than this share of its highest bin are not worth the room.
_FAINT = 0.002
# A share of values beyond the ends of a picture that is worth a line.
_TOLD = 0.01
# What an edge is off by, in parts of the range, where it should be 0.
_ROUNDING = 1e-9
# The edges of the picture of drift: running standard deviations, and doublings of the variance.
_SHIFT, _DOUBLINGS = 2.0, 3.0


def pictures(layer: Layer, gradients: tuple[float, float] | None) -> Iterator[Small]:
    """The pictures of a layer.

    Args:
        layer: The layer.
        gradients: The smallest and the largest gradient of the network, between which all are drawn.
    """
    run = shown_run(layer)
    if run is not None:
        modes = _modes(layer)
        yield _input(run, modes)
        yield _standardized(layer, modes)
        yield _output(run, modes)
        yield _drift(layer)
    elif layer.has_statistics:
        yield from _statistics(layer)
    yield _affine(layer)
    if run is not None:
        yield _gradient(layer, gradients)


def _modes(layer: Layer) -> list[tuple[str, LayerRun, int]]:
    """What was run, with its colour."""
    found = [("training", layer.in_training, _TRAINING), ("evaluation", layer.in_evaluation, _EVALUATION)]
    return [(name, run, color) for name, run, color in found if run is not None]


def _input(run: LayerRun, modes: Sequence[tuple[str, LayerRun, int]]) -> Small:
    seen = [(name, each.input, color) for name, each, color in modes if each.input.total]
    # Both modes saw the same batches.
    lost = sum(call.nonfinite for call in run.calls if not call.recomputed)
    if not seen:
        return Small("Input", "", empty=f"{lost:,} values, none of them finite" if lost else "no values")
    low, high = _occupied([each for _, each, _ in seen])
    mean, std = pooled(run.mean.numpy(), run.var.numpy())
    caption = [f"mean {spoken(mean, 2)}", f"std {spoken(std, 2)}"]
    if lost:
        caption.append(f"{lost:,} not finite")
    return _histograms("Input", "value", seen, low, high, caption)


def _standardized(layer: Layer, modes: Sequence[tuple[str, LayerRun, int]]) -> Small:
    seen = [(name, each.standardized, color) for name, each, color in modes if each.standardized.total]
    if not seen:
        return Small("Standardised", "", empty="no finite values")
    low, high = seen[0][1].low, seen[0][1].high
    caption = []
    far = layer.in_evaluation
    if far is not None and far.calls and not far.calls[-1].by_batch and layer.has_statistics:
        mean, var, eps = layer.values("running_mean"), layer.values("running_var"), layer.eps or 0.0
        with np.errstate(all="ignore"):
            scale = 1 / np.sqrt(var + eps)  # type: ignore[operator]
            center, width = pooled((far.mean.numpy() - mean) * scale, far.var.numpy() * scale**2)
        caption = (
            ["in evaluation not finite"]
            if math.isnan(center)
            else [f"eval. mean {spoken(center, 2)}", f"eval. std {spoken(width, 2)}"]
        )
    grid = np.linspace(low, high, _BINS + 1)
    normal = np.exp(-(grid**2) / 2) / math.sqrt(2 * math.pi)
    reference = Series("", grid.tolist(), normal.tolist(), _BASELINE, dash="dot")
    return _histograms("Standardised", "standard deviations", seen, low, high, caption, (reference,))


def _output(run: LayerRun, modes: Sequence[tuple[str, LayerRun, int]]) -> Small:
    seen = [(name, each.output, color) for name, each, color in modes if each.output.total]
    if not seen:
        return Small("Output", "", empty="no finite values" if run.output_high is not None else "of another shape")
    low, high = _whole(*_occupied([each for _, each, _ in seen]))
    caption = [f"{_percent(run.output.share(0.0, math.inf))} above 0"] if run.output.total else []
    caption += [
        f"{int(found.sum())} {word}"
        for found, word in ((dead(run), "dead"), (saturated(run), "saturated"))
        if found.any()
    ]
    known = [each.numpy() for each in (run.output_high, run.output_var) if each is not None]
    lost = int(np.any([~np.isfinite(each) for each in known], axis=0).sum()) if known else 0
    if lost:
        caption.append(f"{counted(lost, 'channel')} not finite")
    return _histograms("Output", "value", seen, low, high, caption)


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%"


def _occupied(histograms: Sequence[Histogram]) -> tuple[float, float]:
    """From where to where there is something to see in any of them."""
    ends = []
    for each in histograms:
        seen = np.flatnonzero(each.counts > _FAINT * each.counts.max())
        if seen.size:
            ends += [float(each.edges[seen[0]]), float(each.edges[seen[-1] + 1])]
    low, high = (min(ends), max(ends)) if ends else (histograms[0].low, histograms[0].high)
    # The edge of a bin at 0, but for rounding.
    tiny = _ROUNDING * (high - low)
    return (0.0 if abs(low) < tiny else low), (0.0 if abs(high) < tiny else high)


def _whole(low: float, high: float) -> tuple[float, float]:
    """Whole numbers around these and 0: rows are easier to compare."""
    return min(float(math.floor(low)), -1.0), max(float(math.ceil(high)), 1.0)


def _histograms(
    title: str,
    unit: str,
    seen: Sequence[tuple[str, Histogram, int]],
    low: float,
    high: float,
    caption: Sequence[str],
    behind: Sequence[Series] = (),
) -> Small:
    series = list(behind)
    for name, histogram, color in seen:
        edges, density = _density(histogram)
        training = color == _TRAINING or len(seen) == 1
        dash = "solid" if training else "dash"
        series.append(Series(name, edges, density, color, shape="step", fill=training, dash=dash))
    top = max((max(each.y, default=0.0) for each in series), default=0.0) or 1.0
    beyond = max(_beyond(histogram, low, high) for _, histogram, _ in seen)
    lines = [*caption, *([f"{_percent(beyond)} beyond"] if beyond >= _TOLD else [])]
    words = f"{title}, from {spoken(low, 2)} to {spoken(high, 2)}. {', '.join(lines)}".rstrip(" .") + "."
    ends = spoken(low, 2), spoken(high, 2)
    return Small(title, words, series, (low, high), (0.0, 1.06 * top), ends, x_label=unit, caption=lines)


def _beyond(histogram: Histogram, low: float, high: float) -> float:
    return histogram.share(-math.inf, low) + histogram.share(high, math.inf) if histogram.total else 0.0


def _density(histogram: Histogram) -> tuple[list[float], list[float]]:
    """Edges of a few bins, and the density of each; steps begin and end at 0."""
    every = max(1, histogram.bins // _BINS // (2 if histogram.bins > 2 * _BINS else 1))
    counts = histogram.counts.reshape(-1, every).sum(1)
    edges = histogram.edges[::every]
    density = counts / max(histogram.total, 1) / (edges[1] - edges[0])
    return [float(edges[0]), *edges.tolist()], [0.0, *density.tolist(), 0.0]


def _drift(layer: Layer) -> Small:
    title = "Drift"
    found = drift(layer)
    if found is None:
        return Small(title, "", empty="no running statistics" if not layer.has_statistics else "not known")
    known = np.flatnonzero(np.isfinite(found.shift))
    lost = found.shift.size - known.size
    poisoned = f"{lost:,} channels not finite" if lost else ""
    if not known.size:
        return Small(title, "", empty=poisoned)
    shift, doublings = found.shift[known], np.log2(found.ratio[known])
    kept = _some(np.hypot(shift, doublings))
    x, y = shift[kept], doublings[kept]
    inside = (np.abs(x) <= _SHIFT) & (np.abs(y) <= _DOUBLINGS)
    series = [
        Series("", [-_SHIFT, _SHIFT], [0.0, 0.0], _BASELINE, dash="dot"),
        Series("", [0.0, 0.0], [-_DOUBLINGS, _DOUBLINGS], _BASELINE, dash="dot"),
        Series("", x[inside].tolist(), y[inside].tolist(), _TRAINING, line=False),
        Series("", x[~inside].tolist(), y[~inside].tolist(), _EVALUATION, line=False),
    ]
    middle, ratio = float(np.median(np.abs(shift))), float(np.median(found.ratio[known]))
    caption = [f"mean ±{spoken(middle, 2)} std", f"variance ×{spoken(ratio, 2)}", *([poisoned] if poisoned else [])]
    words = (
        f"Drift of the data from the running statistics, a point a channel. Medians: {', '.join(caption)}. Largest: "
        f"mean off by {spoken(float(np.abs(shift).max()), 2)}, variance {span(found.ratio)} times the running one."
    )
    return Small(
        title,
        words,
        series,
        (-_SHIFT, _SHIFT),
        (-_DOUBLINGS, _DOUBLINGS),
        (f"−{_SHIFT:g}", f"+{_SHIFT:g}"),
        (f"variance ×1/{2**_DOUBLINGS:g}", f"variance ×{2**_DOUBLINGS:g}"),
        "mean less running mean, in running std",
        caption,
    )


def _some(sizes: Numbers) -> Numbers:
    """Indices of at most POINTS values, spread evenly over their order of size: the largest is always among them."""
    order = np.argsort(-sizes, kind="stable")
    if order.size <= POINTS:
        return order
    return np.asarray(order[np.linspace(0, order.size - 1, POINTS).round().astype(int)])


def _affine(layer: Layer) -> Small:
    gamma, beta = affine(layer)
    named = [(name, values, color) for name, values, color in (("γ", gamma, 1), ("β", beta, 2)) if values is not None]
    if not named:
        return Small("γ and β", "", empty="none (affine=False)" if layer.module is not None else "none")
    caption = [f"{name} {span(values)}" for name, values, _ in named]
    lost = sum(int(values.size - finite(values).size) for _, values, _ in named)
    if lost:
        caption.append(f"{lost:,} not finite")
    return _sorted(" and ".join(name for name, *_ in named), named, caption)


def _sorted(title: str, named: Sequence[tuple[str, Numbers, int]], caption: Sequence[str]) -> Small:
    """Curves of values by size."""
    curves = [(name, np.sort(finite(values)), color) for name, values, color in named]
    curves = [(name, values, color) for name, values, color in curves if values.size]
    if not curves:
        return Small(title, "", empty=", ".join(caption))
    both = np.concatenate([values for _, values, _ in curves])
    low, high = min(float(both.min()), 0.0), max(float(both.max()), 0.0)
    room = 0.08 * (high - low) or 0.5
    series = [Series("", [0.0, 1.0], [0.0, 0.0], _BASELINE, dash="dot")]
    for number, (name, values, color) in enumerate(curves):
        places = np.linspace(0, values.size - 1, min(values.size, POINTS // 2)).round().astype(int)
        across = np.linspace(0, 1, len(places)) if len(places) > 1 else np.array([0.0, 1.0])
        along = values[places] if len(places) > 1 else np.repeat(values, 2)
        dash = "dash" if number else "solid"
        series.append(Series(name, across.tolist(), along.tolist(), color, dash=dash))
    words = f"{title}, channels by size. {', '.join(caption)}."
    return Small(
        title,
        words,
        series,
        (0.0, 1.0),
        (low - room, high + room),
        ("least", "most"),
        x_label="channels by size",
        caption=caption,
    )


def _statistics(layer: Layer) -> Iterator[Small]:
    for name, title in (("running_mean", "Running mean"), ("running_var", "Running variance")):
        values = layer.values(name)
        assert values is not None
        lost = int(values.size - finite(values).size)
        caption = [span(values), *([f"{lost:,} channels not finite"] if lost else [])]
        yield _sorted(title, [(title, values, _TRAINING)], caption)


def _gradient(layer: Layer, ends: tuple[float, float] | None) -> Small:
    title = "Gradient"
    gradient = layer.gradient
    rows = [] if gradient is None else [("out", gradient.output, 1.0, 1), ("in", gradient.input, 0.0, 2)]
    seen = [(name, value, y, color) for name, value, y, color in rows if value is not None]
    if not seen:
        return Small(title, "", empty="none came back")
    caption = [f"{name} {spoken(value, 2) if math.isfinite(value) else 'not finite'}" for name, value, _, _ in seen]
    if ends is None or not any(0 < value < math.inf for _, value, _, _ in seen):
        same = {"0 came back" if value == 0 else "not finite" for _, value, _, _ in seen}
        return Small(title, "", empty=same.pop() if len(same) == 1 else ", ".join(caption))
    low, high = math.log10(ends[0]), math.log10(ends[1])
    series = []
    for name, value, y, color in seen:
        place = math.log10(value) if 0 < value < math.inf else (low if value == 0 else math.nan)
        dash = "solid" if name == "out" else "dash"
        series.append(Series("", [low, place], [y, y], color, dash=dash))
        series.append(Series(name, [place], [y], color, line=False))
    words = f"Gradient, root mean square, at the output and at the input. {', '.join(caption)}."
    marks = (f"10{_raised(low)}", f"10{_raised(high)}")
    return Small(
        title,
        words,
        series,
        (low, high),
        (-0.8, 1.8),
        marks,
        ("in", "out"),
        "root mean square",
        caption,
    )


def _raised(exponent: float) -> str:
    return f"{round(exponent)}".translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
