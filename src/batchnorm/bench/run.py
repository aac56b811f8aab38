"""A case from beginning to end: inputs, the reference, the gate, the rounds, the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from .. import ops
from .cases import Case
from .contenders import EAGER
from .faults import fault_seconds
from .gate import Errors, Verdict, errors, judge, truth
from .inputs import Inputs, as_format, copies, draw
from .limit import least_bytes
from .peers import OURS, Contender, Peer, Unavailable
from .row import TIMED, UNAVAILABLE, WRONG, Environment, Row, with_times
from .timing import Samples, interleave, quantiles, repetitions

__all__ = ["ROUNDS", "measure", "measure_all"]

ROUNDS = 20
_COPY = "copy"


@dataclass
class _Entry:
    """A contender on its way through the gate."""

    name: str
    contender: Contender | None = None
    found: Errors | None = None
    verdict: Verdict | None = None
    kept: int | None = None
    status: str = UNAVAILABLE
    reason: str = ""


def measure_all(cases: Iterable[Case], peers: Sequence[Peer], rounds: int = ROUNDS) -> Iterator[tuple[Case, list[Row]]]:
    """Measures case by case, and gives each case with its rows when it is done.

    Args:
        cases: What is measured.
        peers: Beside this library; eager torch must be the first, since its errors are one side of the tolerance.
        rounds: Samples a contender.
    """
    environment = Environment.now(fault_seconds())
    for case in cases:
        yield case, measure(case, peers, rounds, environment)


def measure(case: Case, peers: Sequence[Peer], rounds: int, environment: Environment, ours: Peer = OURS) -> list[Row]:
    """Measures one case: a row for this library, then one for each peer.

    Args:
        case: What is measured.
        peers: Beside this library, eager torch first.
        rounds: Samples a contender.
        environment: What it runs on.
        ours: Who the first row is about.
    """
    inputs = draw(case)
    right = truth(case, inputs)
    entries = [_enter(peer, case, inputs) for peer in (ours, *peers)]
    for entry in entries:
        if entry.contender is not None:
            try:  # a compiler or another library raises what it likes
                entry.found = errors(case, entry.contender.results(inputs), right)
                entry.kept = entry.contender.kept(inputs)
            except Exception as error:
                _fail(entry, error, WRONG if entry.name == ours.name else UNAVAILABLE)
    baseline = next(entry.found for entry in entries if entry.name == EAGER)
    assert baseline is not None
    for entry in entries:
        if entry.found is not None:
            entry.verdict = judge(case, entry.found, baseline, right)
            entry.status, entry.reason = (TIMED if entry.verdict.passed else WRONG), entry.verdict.reason
    del right
    sets = copies(case)
    repeat, samples = _timed(case, [entry for entry in entries if entry.status == TIMED], inputs, sets, rounds)
    return [_row(case, entry, samples, environment, repeat, sets, ours.name) for entry in entries]


def _enter(peer: Peer, case: Case, inputs: Inputs) -> _Entry:
    entry = _Entry(peer.name)
    try:
        entry.contender = peer.build(case)
    except Unavailable as reason:
        entry.reason = str(reason)
    except Exception as error:  # a peer whose import or build breaks is no reason to lose the others
        _fail(entry, error, UNAVAILABLE)
    return entry


def _fail(entry: _Entry, error: Exception, status: str) -> None:
    first = (str(error).strip().splitlines() or [""])[0]
    entry.contender, entry.status, entry.reason = None, status, f"{type(error).__name__}: {first}"


def _timed(
    case: Case, entries: Sequence[_Entry], inputs: Inputs, sets: int, rounds: int
) -> tuple[dict[str, int], dict[str, Samples]]:
    """The rounds: a copy of the input, then each contender."""
    pool = [inputs, *(inputs.copy() for _ in range(sets - 1))]
    steps: dict[str, Callable[[], object]] = {_COPY: _copying(pool)}
    for entry in entries:
        assert entry.contender is not None
        entry.contender.load(pool)
        steps[entry.name] = entry.contender.step
    with torch.set_grad_enabled(case.training):
        repeat = {name: repetitions(step) for name, step in steps.items()}
        return repeat, interleave(steps, rounds, repeat=repeat)


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


def _row(
    case: Case,
    entry: _Entry,
    samples: dict[str, Samples],
    environment: Environment,
    repeat: dict[str, int],
    sets: int,
    ours: str,
) -> Row:
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
        tensor_bytes=case.bytes,
        backend=_backend(case) if entry.name == ours else "",
        environment=environment,
    )
    sample = samples.get(entry.name)
    if sample is None:
        return row
    copy = quantiles(samples[_COPY].seconds).median
    least = least_bytes(case, environment.l2_bytes, environment.threads)
    limit = copy * least / (2 * case.bytes)
    return replace(
        with_times(row, sample, samples.get(ours), repeat[entry.name]),
        copies=sets,
        least_bytes=least,
        copy_microseconds=1e6 * copy,
        limit_microseconds=1e6 * limit,
        times_limit=quantiles(sample.seconds).median / limit,
    )


def _backend(case: Case) -> str:
    """Which of our kernels serves a case."""
    like = as_format(torch.empty(case.shape, dtype=getattr(torch, case.dtype)), case.format)
    name = ops.explain(like).partition(":")[0]
    # It tells of training; in evaluation torch's own kernels serve whatever the compiled ones do not.
    return "native" if name == "eager" and not case.training else name
