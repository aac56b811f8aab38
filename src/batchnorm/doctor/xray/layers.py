"""A row for each norm, in the order in which they are called."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ...report import Block, Entries, Entry, Link, Section, Table, spoken
from ..diagnosis import Diagnosis
from ..evidence import Layer, LayerRun
from ..finding import Finding
from .channels import Numbers, drift, finite, fixed, lifeless, saturated, shown_run
from .network import gradient_ends
from .pictures import POINTS, pictures
from .words import at, badge, counted, finding_anchor, short

__all__ = ["layers"]

# Channels that are listed as those farthest from their running statistics, or of no use.
_LISTED = 5


def layers(diagnosis: Diagnosis) -> Section:
    """The section."""
    evidence = diagnosis.evidence
    if not evidence.layers:
        return Section("Layers", "layers", blocks=("The model has no batch norm.",))
    ends = gradient_ends(evidence.layers)
    rows = [_entry(diagnosis, number, layer, ends) for number, layer in enumerate(evidence.layers, 1)]
    return Section(
        "Layers",
        "layers",
        blocks=(*_legend(diagnosis), Entries(rows, only="Only those with findings")),
    )


def _legend(diagnosis: Diagnosis) -> Iterator[Block]:
    evidence = diagnosis.evidence
    if evidence.training is None:
        order = "in the order of the model" if evidence.model is not None else "in the order of the file"
        yield (
            f"Each norm, {order}. Without batches there are no distributions: what is drawn is what the layer holds,"
            " channel by channel, from the least value to the largest."
        )
        return
    yield "Each norm in the order of calls. Unfold one for its numbers and for larger pictures."
    yield (
        "Distributions",
        (
            "solid and tinted: in training mode; dashed: in evaluation mode; dotted: the standard normal distribution. "
            "Where the dashed line leaves the solid one, evaluation is another function than the one that was trained."
        ),
    )
    yield (
        "Drift",
        (
            "a point a channel. Across: the mean of the data less the running mean, in running standard deviations; "
            "up: the variance of the data over the running one. The crossing is agreement. Of more than "
            f"{POINTS} channels, {POINTS} are drawn; those beyond the edges stand at the edge, in the second colour."
        ),
    )
    yield "γ and β", "the channels' values by size; solid: γ, dashed: β, dotted: 0"
    yield (
        "Gradient",
        "the root mean square at the norm's output (upper, solid) and input (lower, dashed); all norms have one scale",
    )
    yield (
        "Dead",
        "channels whose output never was above 0, so that no ReLU lets them through, or that give one value only",
    )
    yield "Saturated", "channels with most outputs beyond ±4, where sigmoid and tanh are flat"


def _entry(diagnosis: Diagnosis, number: int, layer: Layer, ends: tuple[float, float] | None) -> Entry:
    own = at(diagnosis.findings, layer)
    # As in the section of findings: the worst first, and of each rule one.
    by_rule: dict[str, Finding] = {}
    for finding in own:
        by_rule.setdefault(finding.rule, finding)
    return Entry(
        short(layer.path),
        f"layer-{number}",
        ", ".join(_about(diagnosis, layer)),
        tuple(badge(finding, code) for code, finding in by_rule.items()),
        tuple(pictures(layer, ends)),
        "Numbers, and larger pictures",
        tuple(_details(layer, own)),
        bool(own),
        str(number),
    )


def _about(diagnosis: Diagnosis, layer: Layer) -> Iterator[str]:
    if layer.kind:
        yield layer.kind
    yield counted(layer.channels, "channel")
    if layer.frozen is not None:
        yield "frozen"
    if diagnosis.evidence.training is not None and shown_run(layer) is None:
        yield "no batch reached it"


def _details(layer: Layer, own: Sequence[Finding]) -> Iterator[Block]:
    for finding in own:
        yield Link(f"{finding.rule} {finding.name}: {finding.message}", finding_anchor(finding))
    yield from _settings(layer)
    run = shown_run(layer)
    if run is not None:
        yield from _seen(layer, run)
    table = _quantiles(layer, run)
    if table.rows:
        yield table
    if run is not None:
        yield from _conspicuous(layer, run)


def _settings(layer: Layer) -> Iterator[Block]:
    if layer.module is None:
        if layer.batches_tracked is not None:
            yield "Batches tracked", f"{layer.batches_tracked:,}"
        return
    momentum = "the cumulative average" if layer.momentum is None else spoken(layer.momentum)
    yield "Settings", f"eps {spoken(layer.eps or 0.0)}, momentum {momentum}"
    if layer.batches_tracked is not None:
        yield "Batches tracked", f"{layer.batches_tracked:,}"
    modes = [f"{'training' if layer.training else 'evaluation'} mode as given"]
    if layer.frozen is not None:
        modes.append(f"frozen: {layer.frozen}")
    if layer.track_running_stats is False:
        modes.append("no running statistics are tracked")
    fixed_ones = [name for name, needed in layer.requires_grad.items() if not needed]
    if fixed_ones:
        modes.append(f"{' and '.join(fixed_ones)} do not train")
    yield "State", "; ".join(modes)


def _seen(layer: Layer, run: LayerRun) -> Iterator[Block]:
    first = run.first_step
    if first:
        call = first[0]
        shape = " × ".join(map(str, call.shape))
        yield "Input", f"{shape}, {str(call.dtype).removeprefix('torch.')}: {call.values:,} values a channel and call"
        if len(first) > 1:
            yield "Calls", f"{len(first)} a batch"
    by = {
        mode: _normalised_by(each)
        for mode, each in (("training", layer.in_training), ("evaluation", layer.in_evaluation))
    }
    yield "Normalises by", "; ".join(f"{words} in {mode}" for mode, words in by.items() if words)
    gradient = layer.gradient
    if gradient is not None:
        parts = {"output": gradient.output, "input": gradient.input, "γ": gradient.weight, "β": gradient.bias}
        known = [f"{name} {spoken(value)}" for name, value in parts.items() if value is not None]
        yield "Gradients", f"root mean squares: {', '.join(known)}" if known else "none"


def _normalised_by(run: LayerRun | None) -> str:
    if run is None:
        return ""
    found = {call.by_batch for call in run.calls}
    return "both" if len(found) > 1 else "the batch" if True in found else "running statistics"


def _quantiles(layer: Layer, run: LayerRun | None) -> Table:
    found = drift(layer)
    values: Mapping[str, Numbers | None] = {
        "γ": layer.values("weight"),
        "β": layer.values("bias"),
        "running mean": layer.values("running_mean"),
        "mean of the data": None if run is None else run.mean.numpy(),
        "running variance": layer.values("running_var"),
        "variance of the data": None if run is None else run.var.numpy(),
        "data less running mean (running std)": None if found is None else found.shift,
        "variance / running variance": None if found is None else found.ratio,
    }
    rows = []
    for name, all_values in values.items():
        if all_values is None or not all_values.size:
            continue
        known = finite(all_values)
        lost = all_values.size - known.size
        numbers = [spoken(float(each)) for each in np.quantile(known, (0, 0.5, 1))] if known.size else ["–"] * 3
        rows.append((name, *numbers, f"{lost:,}" if lost else ""))
    header = ("channels", "least", "median", "most", "not finite")
    if not any(row[-1] for row in rows):
        return Table(header[:-1], [row[:-1] for row in rows], title="Values of the channels")
    return Table(header, rows, title="Values of the channels")


def _conspicuous(layer: Layer, run: LayerRun) -> Iterator[Block]:
    for name, found in (
        ("Give one value", fixed(run)),
        ("Never above 0", lifeless(run) & ~fixed(run)),
        ("Mostly beyond ±4", saturated(run)),
    ):
        if found.any():
            which = np.flatnonzero(found)
            listed = ", ".join(str(each) for each in which[:20])
            more = f" and {which.size - 20:,} more" if which.size > 20 else ""
            yield name, f"{which.size:,} of {counted(found.size, 'channel')}: {listed}{more}"
    far = drift(layer)
    if far is None or not np.isfinite(far.shift).any():
        return
    with np.errstate(all="ignore"):
        size = np.hypot(far.shift, np.log2(far.ratio))
    order = np.argsort(-np.nan_to_num(size, nan=-1.0), kind="stable")[:_LISTED]
    rows = [
        (str(channel), spoken(float(far.shift[channel])), spoken(float(far.ratio[channel])))
        for channel in order
        if np.isfinite(size[channel])
    ]
    yield "Farthest: by both together, in running standard deviations and in doublings of the variance."
    yield Table(
        ("channel farthest from running", "mean off by (running std)", "variance / running"),
        rows,
        title="The channels farthest from their running statistics",
    )
