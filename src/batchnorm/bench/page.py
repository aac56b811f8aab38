"""The page of a benchmark: ratios by kind of case, the targets, and every case in a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..report import Block, Heading, Intervals, Section, Table, render
from ..report.chart import Row as Mark
from ..report.number import spoken
from .contenders import BATCHNORM, EAGER, FOLD, FUSE, LEAN, OURS, spoken_name
from .norms import difference
from .row import INFERENCE, MODEL, TIMED, Environment, Row
from .summary import findings, losses, memory, noise, side_by_side, wrong

__all__ = ["page"]

_MODES = {
    "norm+act": "norm, activation",
    "norm+add+act": "norm, sum, activation",
    "norm+add": "norm, sum",
    "norm": "norm alone",
    "evaluation": "evaluation",
}
_MADE = {EAGER: "as given", FUSE: "by fuse", LEAN: "by fuse, with lean", FOLD: "by fold"}
_MOST_MARKS = 40  # cases in one chart; more are in the table alone

_RATIO = "time of the other ÷ time of batchnorm (above 1: batchnorm is faster)"


def page(rows: Sequence[Row]) -> str:
    """Gives the page as text.

    Args:
        rows: What was measured; at least one row.

    Raises:
        ModuleNotFoundError: If what the page is made with is not installed.
    """
    environment = rows[-1].environment
    cases = [row for row in rows if row.of_a_case]
    sections = [Section("In a minute", "summary", blocks=tuple(_summary(rows)))]
    sections += [_model(group) for group in _by_case([row for row in rows if row.of_a_model])]
    for peer in dict.fromkeys(row.contender for row in cases if row.contender != BATCHNORM):
        blocks = tuple(_against(cases, peer))
        if blocks:
            sections.append(Section(f"Beside {spoken_name(peer)}", f"beside-{peer}", blocks=blocks))
    if cases:
        sections.append(Section("Every case", "cases", blocks=(_table(cases),)))
    sections.append(Section("What it ran on, and how", "environment", blocks=tuple(_environment(rows))))
    return render(
        "Batch norm, timed",
        "This library's layers beside others, on this machine; a result is checked before its time counts.",
        sections,
        footer=f"Made by batchnorm {environment.batchnorm} on {environment.date}.",
    )


def _summary(rows: Sequence[Row]) -> Iterator[Block]:
    failed = wrong(rows)
    measured = len({(row.case, row.mode) for row in rows if row.contender in OURS and row.status == TIMED})
    yield f"{measured} case{'s' * (measured != 1)} timed; {len(failed)} of ours broke the tolerance" + (
        f": {', '.join(row.case for row in failed)}." if failed else "."
    )
    found = [finding for finding in findings(rows) if finding.value is not None]
    if found:
        yield Table(
            ("what", "measured", "target", "cases"),
            [each.cells for each in found],
            [{True: "good", False: "bad", None: ""}[each.met] for each in found],
            title="Numbers beside their targets",
        )
    warning = noise(rows)
    if warning:
        yield warning
    slow = losses(rows)
    if slow:
        worst = ", ".join(f"{row.case} ({spoken(row.ratio or 0)})" for row in slow[:5])
        yield f"Slower than eager torch beyond noise, the worst first: {worst}{' …' if len(slow) > 5 else ''}."
    paying = memory(rows)
    if paying is not None:
        yield paying.sentence


def _against(rows: Sequence[Row], peer: str) -> Iterator[Block]:
    timed = [row for row in rows if row.contender == peer and row.ratio is not None]
    if not timed:
        reasons = dict.fromkeys(row.reason for row in rows if row.contender == peer and row.reason)
        yield f"Not timed: {'; '.join(reasons)}."
        return
    groups: dict[str, list[float]] = {}
    for row in sorted(timed, key=lambda row: (list(_MODES).index(row.mode), side_by_side(row), row.dtype)):
        layout = "channels-last or (N, C)" if side_by_side(row) else "contiguous"
        groups.setdefault(f"{_MODES[row.mode]}, {layout}, {row.dtype}", []).append(row.ratio or 0.0)
    marks = [
        Mark(f"{name} ({len(ratios)})", *np.quantile(ratios, (0.5, 0.1, 0.9)).tolist())
        for name, ratios in groups.items()
    ]
    median = float(np.median([row.ratio or 0.0 for row in timed]))
    faster = sum((row.ratio or 0.0) > 1 for row in timed)
    yield Intervals(
        f"batchnorm is faster than {spoken_name(peer)} in {faster} of {len(timed)} cases; the median ratio is "
        f"{spoken(median)}",
        _RATIO,
        marks,
        1.0,
        "as fast as each other",
        log_x=True,
        note="One row a kind of case, the number of cases in parentheses: the median of their ratios, and from the "
        "10th to the 90th percentile.",
    )
    shown = sorted(timed, key=lambda row: row.ratio or 0.0)[:_MOST_MARKS]
    few = "The cases" if len(shown) == len(timed) else f"The {len(shown)} cases of {len(timed)}"
    yield Intervals(
        f"{few} with the smallest gain",
        _RATIO,
        [Mark(row.case, row.ratio or 0.0, row.ratio_low or 0.0, row.ratio_high or 0.0) for row in shown],
        1.0,
        "as fast as each other",
        log_x=True,
        note=f"Ratio of medians over {shown[0].rounds} rounds, with its 95% bootstrap interval.",
    )


def _by_case(rows: Sequence[Row]) -> list[list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.case, []).append(row)
    return list(groups.values())


def _table(rows: Sequence[Row]) -> Table:
    header = ("case", "who", "median", "20% to 80%", "other ÷ ours", "÷ limit", "kept", "page faults", "occurs")
    lines = [
        (
            row.case,
            row.contender,
            "wrong" if row.status == "wrong" else _microseconds(row.microseconds),
            f"{_microseconds(row.microseconds_20)} to {_microseconds(row.microseconds_80)}"
            if row.microseconds
            else row.reason,
            "" if row.contender == BATCHNORM or row.ratio is None else f"{row.ratio:.2f}",
            "" if row.times_limit is None else f"{row.times_limit:.2f}",
            "" if row.kept_bytes is None else f"{row.kept_bytes / 1e6:.2f} MB",
            "" if row.fault_share is None else f"{100 * row.fault_share:.0f}%",
            row.networks,
        )
        for row in rows
    ]
    return Table(header, lines, title="Every case")


def _microseconds(value: float | None) -> str:
    return "" if value is None else f"{spoken(value)} µs" if value < 1000 else f"{spoken(value / 1000)} ms"


def _model(rows: Sequence[Row]) -> Section:
    training = [row for row in rows if row.mode == MODEL]
    given = next(row for row in training if row.contender == EAGER)
    blocks: list[Block] = [_of_a_model(training, "The training step")]
    inference = [row for row in rows if row.mode == INFERENCE]
    if inference:
        blocks.append(_of_a_model(inference, "Inference: the forward pass in evaluation, without gradients"))
    if given.norm_share is not None and given.activation_share is not None:
        norm, act = given.norm_share, given.activation_share
        blocks.append(
            f"As given, {100 * norm:.0f}% of the step's time is its norms' and {100 * act:.0f}% its activations' and "
            f"sums'. Were the norms free, the step would be {1 / (1 - norm):.2f} times as fast; with activations and "
            f"sums {1 / max(1 - norm - act, 1e-9):.2f} times."
        )
    done = [(row.contender, each) for row in rows for each in filter(None, row.norms.split(" | "))]
    if done:
        blocks.append(Table(("who", "norms, and why"), done, title="What became of the norms"))
    blocks += [f"{row.contender}: {difference(row)}." for row in rows if difference(row)]
    return Section(f"The training step of {given.case}", "model", blocks=tuple(blocks))


def _of_a_model(rows: Sequence[Row], title: str) -> Table:
    return Table(
        ("who", "median", "eager ÷ it", "interval", "kept", "page faults"),
        [
            (
                _MADE.get(row.contender, spoken_name(row.contender)),
                _microseconds(row.microseconds) or row.reason,
                "" if row.contender == EAGER or row.speedup is None else f"{row.speedup:.2f}",
                ""
                if row.contender == EAGER or row.speedup is None
                else f"{row.speedup_low:.2f} to {row.speedup_high:.2f}",
                "" if row.kept_bytes is None else f"{row.kept_bytes / 1e6:.1f} MB",
                "" if row.fault_share is None else f"{100 * row.fault_share:.0f}%",
            )
            for row in rows
        ],
        title=title,
    )


def _environment(rows: Sequence[Row]) -> Iterator[Block]:
    environment = rows[-1].environment
    yield from _terms(environment)
    yield Heading("How it was measured")
    yield (
        "Before anything is timed, outputs, gradients and running statistics are compared with a float64 reference: an "
        "error may be at most twice that of eager torch on the same input, plus one rounding. Who fails prints no time."
    )
    yield (
        "Contenders run in turn, round after round, on inputs that rotate through more memory than the L2 caches hold; "
        "outputs and gradients are fresh at every step. A step is forward and backward, in evaluation forward alone."
    )
    if environment.device == "cuda":
        yield (
            "A GPU is timed by events before the first and after the last of many steps, which are enqueued one behind "
            "the other: where the processor is slower at launching than the GPU at computing, its time is what is told."
        )
    yield (
        "The limit is the time in which the least bytes could move that a step must move, at the bandwidth of a plain "
        "copy of the input in the same rounds."
    )


def _terms(environment: Environment) -> Iterator[tuple[str, str]]:
    names = ("batchnorm", "torch", "numpy", "python", "jax", "cuda", "cudnn", "triton", "driver")
    versions = {name: getattr(environment, name) for name in names}
    yield "versions", ", ".join(f"{name} {number}" for name, number in versions.items() if number)
    on_gpu = environment.device == "cuda"
    cache = f"{environment.l2_bytes / 2**20:.2g} MiB of L2"
    if on_gpu:
        yield "GPU", f"{environment.device_name}, {cache}"
    yield (
        "processor",
        f"{environment.processor}, {environment.instruction_set}, {environment.threads} threads"
        + ("" if on_gpu else f", {cache} a core"),
    )
    yield "system", environment.system + (f", {environment.allocator}" if environment.allocator else "")
    yield "kernels", environment.backends
    if not on_gpu:
        yield "page fault", f"{environment.fault_nanoseconds:.0f} ns each, small pages"
    yield "date", environment.date
