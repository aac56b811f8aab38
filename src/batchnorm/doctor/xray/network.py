"""The network as a whole: how far its statistics are from the data, and what its gradients become, by depth."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from ...report import Block, Curves, Section, Series, Table, spoken
from ..diagnosis import Diagnosis
from ..evidence import Evidence, Layer
from .channels import Drift, dead, drift, saturated, shown_run
from .words import anchors, listed, short

__all__ = ["gradient_ends", "network"]

_DEPTH = "norm, in the order of calls"
# What is closer to the running mean than this is drawn here: a logarithm has no 0.
_NEAREST = 1e-3
# Of so few norms each has its number at the axis; of more they stand where there is room, at whole numbers anyway.
_NUMBERED = 12
# Norms that are listed as those farthest from the data.
_LISTED = 8


def network(diagnosis: Diagnosis) -> Section | None:
    """The section; None where no batch reached a norm."""
    blocks = tuple(_blocks(diagnosis))
    return Section("The network by depth", "network", blocks=blocks) if blocks else None


def gradient_ends(layers: Sequence[Layer]) -> tuple[float, float] | None:
    """Powers of ten between which all gradients at norms lie; None where none is above 0 and finite."""
    found = [
        value
        for layer in layers
        if layer.gradient is not None
        for value in (layer.gradient.output, layer.gradient.input)
        if value is not None and 0 < value < math.inf
    ]
    if not found:
        return None
    low, high = math.floor(math.log10(min(found))), math.ceil(math.log10(max(found)))
    return 10.0**low, 10.0 ** max(high, low + 1)


def _blocks(diagnosis: Diagnosis) -> Iterator[Block]:
    evidence = diagnosis.evidence
    drifts = [drift(layer) for layer in evidence.layers]
    if any(each is not None and np.isfinite(each.shift).any() for each in drifts):
        yield "Press a point of a line to go to its layer."
        yield _shifts(diagnosis, drifts)
        yield _ratios(diagnosis, drifts)
        yield from _farthest(diagnosis, drifts)
        yield from _gaps("Not among the running means and variances: ", _without_drift(evidence.layers, drifts))
    elif any(shown_run(layer) is not None for layer in evidence.layers):
        yield from _gaps("No running means and variances are compared: ", _without_drift(evidence.layers, drifts))
    if gradient_ends(evidence.layers) is not None:
        yield _gradients(diagnosis)
        yield from _gaps("Where the gradients have gaps: ", _without_gradient(evidence.layers))
    elif any(layer.gradient is not None for layer in evidence.layers):
        yield from _gaps("No gradients are drawn: ", _without_gradient(evidence.layers))
    yield from _useless(diagnosis)


def _gaps(words: str, reasons: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Which norms are left out, by why: pairs of a path and its reason."""
    found: dict[str, list[str]] = {}
    for path, why in reasons:
        found.setdefault(why, []).append(path)
    if found:
        yield words + "; ".join(f"{why} at {listed(paths)}" for why, paths in found.items()) + "."


def _without_drift(layers: Sequence[Layer], drifts: Sequence[Drift | None]) -> Iterator[tuple[str, str]]:
    for layer, each in zip(layers, drifts, strict=True):
        if shown_run(layer) is None:
            yield layer.path, "no batch arrived"
        elif each is None:
            yield layer.path, "no running statistics" if not layer.has_statistics else "other channels than it has"
        elif not np.isfinite(each.shift).any():
            yield layer.path, "not finite"


def _without_gradient(layers: Sequence[Layer]) -> Iterator[tuple[str, str]]:
    for layer in layers:
        given = layer.gradient
        values = [] if given is None else [each for each in (given.output, given.input) if each is not None]
        if not values:
            yield layer.path, "none came back"
        elif not all(map(math.isfinite, values)):
            yield layer.path, "not finite"
        elif 0 in values:
            yield layer.path, "0"


def _ticks(layers: Sequence[Layer]) -> Sequence[float] | None:
    """Whole numbers: between norms there is none."""
    return range(1, len(layers) + 1) if len(layers) <= _NUMBERED else None


def _line(
    diagnosis: Diagnosis,
    label: str,
    y: Sequence[float],
    color: int,
    dash: str = "solid",
    low: Sequence[float] | None = None,
    high: Sequence[float] | None = None,
) -> Series:
    layers = diagnosis.evidence.layers
    places = anchors(diagnosis)
    return Series(
        label,
        range(1, len(layers) + 1),
        y,
        color,
        low,
        high,
        dash,
        # Between a few norms, or where neighbours are missing, a line alone would not be seen.
        markers=True,
        names=[f"{number}: {short(layer.path)}" for number, layer in enumerate(layers, 1)],
        links=[places[layer.path] for layer in layers],
    )


def _over(drifts: Sequence[Drift | None], of: Callable[[Drift], float]) -> list[float]:
    return [math.nan if each is None or not np.isfinite(each.shift).any() else of(each) for each in drifts]


def _range(layers: Sequence[Layer]) -> tuple[float, float]:
    return 0.5, len(layers) + 0.5


def _shifts(diagnosis: Diagnosis, drifts: Sequence[Drift | None]) -> Curves:
    layers = diagnosis.evidence.layers
    middle = _over(drifts, lambda each: max(float(np.nanmedian(np.abs(each.shift))), _NEAREST))
    largest = _over(drifts, lambda each: max(float(np.nanmax(np.abs(each.shift))), _NEAREST))
    series = [
        _line(diagnosis, "largest of the channels", largest, 2, "dash"),
        _line(diagnosis, "median channel", middle, 1),
    ]
    note = "The mean of these batches less the running mean, over the running standard deviation."
    samples = _samples(diagnosis.evidence)
    if samples:
        # A channel's values within a sample are as alike as they may be: the mean is then one of so many values.
        chance = 1 / math.sqrt(samples)
        series.append(Series("chance", _range(layers), [chance, chance], 0, dash="dot"))
        note += (
            f" Dotted: the standard error of a mean of {samples:,} samples, at most. Below it a difference may well be"
            " chance."
        )
    return Curves(
        "How far the running means are from the data",
        _DEPTH,
        "distance in standard deviations",
        series,
        log_y=True,
        x_range=_range(layers),
        x_ticks=_ticks(layers),
        note=note,
    )


def _samples(evidence: Evidence) -> int:
    run = evidence.training or evidence.evaluation
    return sum(size or 0 for size in run.samples) if run is not None else 0


def _ratios(diagnosis: Diagnosis, drifts: Sequence[Drift | None]) -> Curves:
    layers = diagnosis.evidence.layers
    lows, middles, highs = (
        _over(drifts, lambda each, share=share: float(np.nanquantile(each.ratio, share)))  # type: ignore[misc]
        for share in (0.1, 0.5, 0.9)
    )
    series = [
        _line(diagnosis, "median channel", middles, 1, low=lows, high=highs),
        Series("the same", _range(layers), [1.0, 1.0], 0, dash="dot"),
    ]
    return Curves(
        "How much larger the data's variance is than the running variance",
        _DEPTH,
        "variance of these batches / running variance",
        series,
        log_y=True,
        x_range=_range(layers),
        x_ticks=_ticks(layers),
        note="Band: eight of ten channels.",
    )


def _farthest(diagnosis: Diagnosis, drifts: Sequence[Drift | None]) -> Iterator[Block]:
    layers = diagnosis.evidence.layers
    if len(layers) <= _LISTED:
        return
    rows = []
    for number, (layer, each) in enumerate(zip(layers, drifts, strict=True)):
        if each is not None and np.isfinite(each.shift).any():
            size = max(float(np.nanmedian(np.abs(each.shift))), abs(math.log2(float(np.nanmedian(each.ratio)))))
            rows.append((size, number, layer, each))
    rows.sort(key=lambda row: (-row[0], row[1]))
    places = anchors(diagnosis)
    yield (
        "Farthest from the data: by the larger of two, the median channel's distance of means in standard deviations, "
        "and the doublings or halvings of its variance."
    )
    yield Table(
        (
            "farthest from the data",
            "mean off by, median channel",
            "largest of the channels",
            "variance / running, median",
        ),
        [
            (
                f"{number + 1} {short(layer.path)}",
                f"{spoken(float(np.nanmedian(np.abs(each.shift))), 2)} std",
                f"{spoken(float(np.nanmax(np.abs(each.shift))), 2)} std",
                spoken(float(np.nanmedian(each.ratio)), 2),
            )
            for _, number, layer, each in rows[:_LISTED]
        ],
        links=[places[layer.path] for _, _, layer, _ in rows[:_LISTED]],
        title="The norms whose running statistics are farthest from the data",
    )


def _gradients(diagnosis: Diagnosis) -> Curves:
    layers = diagnosis.evidence.layers
    given = [layer.gradient for layer in layers]
    series = [
        _line(diagnosis, label, [_shown(getattr(each, name, None)) for each in given], color, dash)
        for label, name, color, dash in (("at the output", "output", 1, "solid"), ("at the input", "input", 2, "dash"))
    ]
    return Curves(
        "What comes back through each norm",
        _DEPTH,
        "gradient, root mean square",
        series,
        log_y=True,
        x_range=_range(layers),
        x_ticks=_ticks(layers),
        note="Of the first batch in training mode. To the left are the norms that the gradient reaches last. "
        "A line that ends or has a gap: nothing came back there, or 0, or what is not finite.",
    )


def _useless(diagnosis: Diagnosis) -> Iterator[Block]:
    runs = [shown_run(layer) for layer in diagnosis.evidence.layers]
    series = []
    for label, of, color, dash in (("dead", dead, 2, "dash"), ("saturated", saturated, 4, "solid")):
        shares = [math.nan if run is None or not run.mean.numel() else 100 * float(of(run).mean()) for run in runs]
        if any(share > 0 for share in shares):
            series.append(_line(diagnosis, label, shares, color, dash))
    if series:
        yield Curves(
            "Channels that are dead or saturated",
            _DEPTH,
            "share of the channels (%)",
            series,
            x_range=_range(diagnosis.evidence.layers),
            x_ticks=_ticks(diagnosis.evidence.layers),
            note="Dead: never above 0 in these batches, so that no ReLU lets them through, or one value only. "
            "Saturated: most outputs beyond ±4, where sigmoid and tanh are flat. What follows the norm is not asked.",
        )


def _shown(value: float | None) -> float:
    return math.nan if value is None or not 0 < value < math.inf else value
