"""A case from beginning to end: inputs, the reference, the gate, the rounds, the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .. import ops
from .cases import Case
from .contenders import EAGER, NO_CUDNN
from .gate import Errors, Truth, Verdict, errors, judge, truth
from .gpu import launches, peak_bytes
from .inputs import Inputs, copies, draw
from .limit import least_bytes
from .peers import OURS, Contender, Peer, Unavailable
from .peers.eager import torchs_kernels
from .peers.peer import Around
from .row import TIMED, UNAVAILABLE, WRONG, Environment, Row, with_times
from .timing import Samples, interleave, quantiles, repetitions
from .watch import watch_of

__all__ = ["ROUNDS", "measure", "measure_all"]

ROUNDS = 20
_COPY = "copy"
_TINY = "tiny"  # the kind of cases whose launches are counted


@dataclass
class _Entry:
    """A contender on its way through the gate."""

    name: str
    contender: Contender | None = None
    found: Errors | None = None
    verdict: Verdict | None = None
    kept: int | None = None
    peak: int | None = None
    launches: float | None = None
    repeat: int = 1
    backend: str = ""
    status: str = UNAVAILABLE
    reason: str = ""


def measure_all(
    cases: Iterable[Case], peers: Sequence[Peer], rounds: int = ROUNDS, device: str = "cpu"
) -> Iterator[tuple[Case, list[Row]]]:
    """Measures case by case, and gives each case with its rows when it is done.

    Args:
        cases: What is measured.
        peers: Beside this library; eager torch must be the first, since its errors are one side of the tolerance.
        rounds: Samples a contender.
        device: Where: ``"cpu"`` or ``"cuda"``.
    """
    environment = Environment.measured(device)
    for case in cases:
        yield case, measure(case, peers, rounds, environment)


def measure(case: Case, peers: Sequence[Peer], rounds: int, environment: Environment, ours: Peer = OURS) -> list[Row]:
    """Measures one case: a row for this library, then one for each peer.

    Args:
        case: What is measured.
        peers: Beside this library, eager torch first.
        rounds: Samples a contender.
        environment: What it runs on; its ``device`` is where the layers and their inputs are.
        ours: Who the first row is about.
    """
    inputs = draw(case)
    right = truth(case, inputs)
    inputs = inputs.to(environment.device)
    entries = [_enter(peer, case, environment.device) for peer in (ours, *peers)]
    for entry in entries:
        if entry.contender is not None:
            try:  # a compiler or another library raises what it likes
                with entry.contender.around():
                    entry.found = errors(case, entry.contender.results(inputs), right)
                    entry.kept = entry.contender.kept(inputs)
            except Exception as error:
                _fail(entry, error, WRONG if entry.name == ours.name else UNAVAILABLE)
    _judge(case, entries, right)
    del right
    _name_kernels(case, entries, inputs, environment.device, ours.name)
    sets = copies(case, environment.l2_bytes * environment.caches)
    pool = [inputs, *(inputs.copy() for _ in range(sets - 1))]
    fit = [entry for entry in entries if entry.status == TIMED]
    samples = _timed(case, fit, pool, rounds, environment.device, ours.name)
    return [_row(case, entry, samples, environment, sets, ours.name) for entry in entries]


def _enter(peer: Peer, case: Case, device: str) -> _Entry:
    entry = _Entry(peer.name)
    try:
        entry.contender = peer.build(case, device)
    except Unavailable as reason:
        entry.reason = str(reason)
    except Exception as error:  # a peer whose import or build breaks is no reason to lose the others
        _fail(entry, error, UNAVAILABLE)
    return entry


def _fail(entry: _Entry, error: Exception, status: str) -> None:
    first = (str(error).strip().splitlines() or [""])[0]
    entry.contender, entry.status, entry.reason = None, status, f"{type(error).__name__}: {first}"


def _judge(case: Case, entries: Sequence[_Entry], right: Truth) -> None:
    """The verdict on everyone who gave results; nobody passes where eager torch, one side of the tolerance, did not."""
    eager = next(entry for entry in entries if entry.name == EAGER)
    for entry in entries:
        if entry.found is None or entry.contender is None:
            continue
        if eager.found is None:
            entry.reason = f"nothing to judge it by, eager torch gave no result: {eager.reason}"
            continue
        entry.verdict = judge(case, entry.found, eager.found, right)
        entry.status, entry.reason = (TIMED if entry.verdict.passed else WRONG), entry.verdict.reason


def _name_kernels(case: Case, entries: Sequence[_Entry], inputs: Inputs, device: str, ours: str) -> None:
    for entry in entries:
        if entry.name == ours:
            entry.backend = _backend(case, inputs.x)
        elif entry.name in (EAGER, NO_CUDNN) and entry.contender is not None and device == "cuda":
            with entry.contender.around():
                entry.backend = torchs_kernels(case, inputs)


def _timed(
    case: Case, entries: Sequence[_Entry], pool: Sequence[Inputs], rounds: int, device: str, ours: str
) -> dict[str, Samples]:
    """The rounds: a copy of the input, then each contender."""
    watch = watch_of(device)
    steps: dict[str, Callable[[], object]] = {_COPY: _copying(pool)}
    repeat = {_COPY: repetitions(steps[_COPY], watch)}
    around: dict[str, Around] = {}
    with torch.set_grad_enabled(case.training):
        for entry in entries:
            assert entry.contender is not None
            step = entry.contender.step
            try:
                entry.contender.load(pool)
                with entry.contender.around():
                    if device == "cuda":
                        entry.peak = peak_bytes(step)
                        entry.launches = launches(step) if _TINY in dict(case.occurs) else None
                    entry.repeat = repeat[entry.name] = repetitions(step, watch)
            except Exception as error:  # likewise
                _fail(entry, error, WRONG if entry.name == ours else UNAVAILABLE)
                continue
            steps[entry.name], around[entry.name] = step, entry.contender.around
        return interleave(steps, rounds, repeat=repeat, watch=watch, around=around)


def _copying(pool: Sequence[Inputs]) -> Callable[[], object]:
    """Copies the next input into memory that is there: reads T and writes T."""
    pairs = [(inputs.x.detach(), torch.zeros_like(inputs.x)) for inputs in pool]
    turn = 0

    def step() -> None:
        nonlocal turn
        turn = (turn + 1) % len(pairs)
        source, target = pairs[turn]
        target.copy_(source)

    return step


def _row(case: Case, entry: _Entry, samples: dict[str, Samples], environment: Environment, sets: int, ours: str) -> Row:
    row = Row(
        case=case.name,
        networks=" ".join(f"{network}:{times}" for network, times in case.occurs),
        shape=case.size,
        format=case.format,
        dtype=case.dtype,
        mode=case.mode,
        activation=case.activation,
        residual=case.residual,
        contender=entry.name,
        status=entry.status,
        reason=entry.reason,
        tolerance_share=None if entry.verdict is None else entry.verdict.worst,
        kept_bytes=entry.kept,
        peak_bytes=entry.peak,
        launches=entry.launches,
        tensor_bytes=case.bytes,
        backend=entry.backend,
        environment=environment,
    )
    sample = samples.get(entry.name)
    if sample is None:
        return row
    copy = quantiles(samples[_COPY].seconds).median
    least = least_bytes(case, environment.l2_bytes, environment.caches)
    limit = copy * least / (2 * case.bytes)
    return replace(
        with_times(row, sample, samples.get(ours), entry.repeat),
        copies=sets,
        least_bytes=least,
        copy_microseconds=1e6 * copy,
        limit_microseconds=1e6 * limit,
        times_limit=quantiles(sample.seconds).median / limit,
    )


def _backend(case: Case, x: Tensor) -> str:
    """Which of our kernels serves a case."""
    name = ops.explain(x).partition(":")[0]
    # It tells of training; in evaluation torch's own kernels serve whatever others do not.
    return "native" if name == "eager" and not case.training else name
